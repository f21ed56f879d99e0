"""The labels of a model's classes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.repository.spec import ModelSpec, TensorSpec
from workers.predictors.labels import with_labels


def spec(name: str) -> ModelSpec:
    plain = TensorSpec(name="Y", datatype="FP32", dims=(1,))
    return ModelSpec(
        name="m", outputs=(TensorSpec(name="P", datatype="FP32", dims=(3,), label_filename=name), plain)
    )


def test_an_output_gets_its_labels(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\nüber\n")
    assert [output.labels for output in with_labels(spec("labels.txt"), tmp_path).outputs] == [
        ("cat", "dog", "über"),
        (),
    ]


@pytest.mark.parametrize("name", ["missing.txt", "../secret.txt", "/etc/passwd", "binary.txt"])
def test_unusable_labels_are_a_load_error(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("x")
    (folder / "binary.txt").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=re.escape(name)):
        with_labels(spec(name), folder)
