"""Tests of the files of an order to load a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.repository.order_files import check_file_path, write_files


def test_files_are_written_under_their_versions(tmp_path: Path) -> None:
    write_files({"1/model.onnx": b"a", "2/data/x": b"b"}, tmp_path)
    assert (tmp_path / "1/model.onnx").read_bytes() == b"a"
    assert (tmp_path / "2/data/x").read_bytes() == b"b"


@pytest.mark.parametrize(
    "path",
    [
        *("", "1", "1/", "/1/x", "model.onnx", "x/model.onnx", "0/x", "01/x", "1//x", "1/../x", "../1/x", "1/./x"),
        *(
            "1/a/../../../x",
            "1/..",
            "1/a\\b",
            "1/a\0b",
            "1/a\nb",
            "1/" + "a" * 256,
            "1/" + "a/" * 20 + "x",
            "9" * 19 + "/x",
        ),
    ],
)
def test_path_that_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="must be file:VERSION/NAME"):
        check_file_path(path)


@pytest.mark.parametrize("second", ["1/x/y", "1/\ud800"])
def test_path_that_cannot_be_written_is_refused(tmp_path: Path, second: str) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        write_files({"1/x": b"", second: b""}, tmp_path)
