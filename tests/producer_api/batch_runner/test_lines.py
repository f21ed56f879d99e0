"""Input files of batches, as they come from other systems, and lines that are wrong."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from producer_api.batch_runner.lines import Survey, locate, read, survey
from tests.support.batch_client import line
from tests.support.batch_records import batch_record

LINES = [json.dumps(line(f"c{number}", "grüße")).encode() for number in range(3)]
BATCH = batch_record()


def surveyed(path: Path, content: bytes) -> Survey:
    path.write_bytes(content)
    return survey(path, BATCH, most_lines=1000, most_bytes=10_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "input.jsonl"


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + b"\n".join(LINES),
        codecs.BOM_UTF8 + b"\r\n\r\n".join(LINES) + b"\r\n",
        b"\n".join(LINES) + b"\n\x1a",
        b"\n".join(LINES) + b"\x1a",
        codecs.BOM_UTF8 + b"\n" + b"\n".join(LINES),
    ],
)
def test_a_byte_order_mark_and_a_final_ctrl_z_are_ignored(path: Path, content: bytes) -> None:
    found = surveyed(path, content)
    assert (found.total, found.errors) == (3, [])
    assert [each.custom_id for chunk in found.chunks for _, each in read(path, chunk)] == ["c0", "c1", "c2"]
    assert [locate(path, number, None) for number in range(2)] == [*found.chunks, None]


@pytest.mark.parametrize("content", [b"\x1a\n".join(LINES), LINES[0] + b"\n" + codecs.BOM_UTF8 + LINES[1]])
def test_a_mark_within_the_file_is_refused(path: Path, content: bytes) -> None:
    assert {error.code for error in surveyed(path, content).errors} == {"invalid_json_line"}


@pytest.mark.parametrize(
    ("encoding", "named"),
    [(name, name.upper()[:6]) for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")],
)
def test_another_encoding_is_named_once(path: Path, encoding: str, named: str) -> None:
    [error] = surveyed(path, b"\n".join(LINES).decode().encode(encoding)).errors
    assert (error.code, error.line) == ("invalid_encoding", 1)
    assert error.message == f"the file must be UTF-8, but it is {named}"


@pytest.mark.parametrize("content", [b"", codecs.BOM_UTF8, b"\x1a", codecs.BOM_UTF8 + b"\r\n\x1a"])
def test_a_file_without_requests_is_refused(path: Path, content: bytes) -> None:
    assert [error.code for error in surveyed(path, content).errors] == ["empty_file"]


@pytest.mark.parametrize(
    ("wrong", "code", "message", "param"),
    [
        (b"[]", "invalid_line", "the line must be an object", None),
        (b'{"custom_id": 5}', "invalid_line", "custom_id must be a string", "custom_id"),
        (b'{"custom_id": "a"}', "missing_required_parameter", "method is required", "method"),
        (b"{", "invalid_json_line", "the line must be valid JSON", None),
    ],
)
def test_a_wrong_line_is_named(path: Path, wrong: bytes, code: str, message: str, param: str | None) -> None:
    [error] = surveyed(path, wrong + b"\n").errors
    assert (error.code, error.message, error.param, error.line) == (code, message, param, 1)
