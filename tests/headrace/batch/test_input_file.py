"""Input files of `headrace batch`, as they come from other systems."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from headrace.batch.input_file import Defaults, InputFile
from shared.errors import ConfigError


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + b'"a"\r\n"b"\r\n',
        b'"a"\n"b"\x1a',
        b'"a"\n\n"b"\n\x1a',
    ],
)
def test_a_byte_order_mark_and_a_final_ctrl_z_are_ignored(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "input.jsonl"
    path.write_bytes(content)
    file = InputFile.scan(path)
    lines = list(file.read(lambda number: True, Defaults("m")))
    assert [(line.error, line.body["messages"][0]["content"]) for line in lines] == [(None, "a"), (None, "b")]
    assert file.requests == 2


@pytest.mark.parametrize(
    ("encoding", "named"), [("utf-16", "UTF-16"), ("utf-16-be", "UTF-16"), ("utf-32", "UTF-32")]
)
def test_another_encoding_is_named(tmp_path: Path, encoding: str, named: str) -> None:
    path = tmp_path / "input.jsonl"
    path.write_bytes('"a"\n"b"\n'.encode(encoding))
    with pytest.raises(ConfigError, match=f"must be UTF-8, but it is {encoding[:6].upper()}"):
        InputFile.scan(path)
