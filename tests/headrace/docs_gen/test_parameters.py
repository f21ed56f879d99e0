"""Output of scripts/parameters-doc. If it is stale, run that, then scripts/proto and scripts/kafka-doc."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.docs_gen.parameters import API_DOC, PROTO, api_doc, proto, table
from shared.validation.parameters import PARAMETERS

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("path", "generate"), [(API_DOC, api_doc), (PROTO, proto)], ids=["api.md", "proto"])
def test_generated_text_is_current(path: Path, generate: Callable[[str], str]) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert generate(text) == text


def test_every_parameter_has_a_row() -> None:
    assert [row.split("`")[1] for row in table().splitlines()[2:]] == [each.name for each in PARAMETERS]


def test_a_stale_comment_is_replaced() -> None:
    stale = "message JobRequest {\n  // old\n  optional int32 n = 15;  // older\n}\n"
    current = proto(stale)
    assert "old" not in current
    assert "  // number of choices; between 1 and 128" in current


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="markers"):
        api_doc("# HTTP APIs\n")
