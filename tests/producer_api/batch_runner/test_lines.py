"""Lines of an input file that are wrong: each error names the field and what it must be."""

from __future__ import annotations

from pathlib import Path

import pytest

from producer_api.batch_runner.lines import survey
from shared.batches.store import Batch

BATCH = Batch(
    id="b",
    tenant="t",
    endpoint="/v1/chat/completions",
    input_file_id="f",
    completion_window="24h",
    created_at=0,
    expires_at=1,
    output_life=1,
)


@pytest.mark.parametrize(
    ("line", "code", "message", "param"),
    [
        (b"[]", "invalid_line", "the line must be an object", None),
        (b'{"custom_id": 5}', "invalid_line", "custom_id must be a string", "custom_id"),
        (b'{"custom_id": "a"}', "missing_required_parameter", "method is required", "method"),
        (b"{", "invalid_json_line", "the line must be valid JSON", None),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: bytes, code: str, message: str, param: str | None) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(line + b"\n")
    [error] = survey(path, BATCH, most_lines=5, most_bytes=1000).errors
    assert (error.code, error.message, error.param, error.line) == (code, message, param, 1)
