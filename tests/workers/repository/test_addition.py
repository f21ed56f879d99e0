"""Tests of adding models to a repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import ConfigError
from tests.support.folders import files_below
from workers.repository.addition import add_version
from workers.repository.folder import FoundModel, scan


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def source(tmp_path: Path, *names: str) -> Path:
    """Write files below a folder `source`, and return it."""
    for name in names:
        file = tmp_path / "source" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tmp_path / "source"


def test_versions_follow_each_other(tmp_path: Path, root: Path) -> None:
    file = source(tmp_path, "net.onnx") / "net.onnx"
    assert [add_version(root, "m", file)[0] for _ in range(3)] == [1, 2, 3]
    assert files_below(root) == {f"m/{version}/model.onnx" for version in (1, 2, 3)}
    (root / "m" / "10").mkdir()
    assert add_version(root, "m", file)[0] == 11


@pytest.mark.parametrize(
    ("names", "files", "backend"),
    [
        (("model.onnx", "model.onnx.data"), {"m/1/model.onnx", "m/1/model.onnx.data"}, "onnxruntime"),
        (("config.json", "a.safetensors"), {"m/1/config.json", "m/1/a.safetensors"}, "headrace"),
        (("saved_model.pb",), {"m/1/model.savedmodel/saved_model.pb"}, "tensorflow"),
    ],
)
def test_folder_becomes_a_version(
    tmp_path: Path, root: Path, names: tuple[str, ...], files: set[str], backend: str
) -> None:
    _, found = add_version(root, "m", source(tmp_path, *names))
    assert files_below(root) == files
    assert found.spec.backend == backend


@pytest.mark.parametrize("file", ["forest.skops", "trees.ubj", "net.pt2", "serve.py", "net.gguf"])
def test_file_gets_the_name_that_its_backend_expects(tmp_path: Path, root: Path, file: str) -> None:
    add_version(root, "m", source(tmp_path, file) / file)
    assert files_below(root) == {f"m/1/model{Path(file).suffix}"}
    assert isinstance(scan(root)[0], FoundModel)


@pytest.mark.parametrize(
    ("file", "name", "problem"),
    [
        ("a.onnx", "../m", "the model's folder must match"),
        ("a.pkl", "m", "a.pkl must be a folder, or a file whose name ends with"),
        ("no/such", "m", "does not exist"),
    ],
)
def test_what_cannot_be_added_is_refused(tmp_path: Path, root: Path, file: str, name: str, problem: str) -> None:
    source(tmp_path, "a.onnx", "a.pkl")
    with pytest.raises(ConfigError, match=problem):
        add_version(root, name, tmp_path / "source" / file)
    assert files_below(tmp_path) == {"source/a.onnx", "source/a.pkl"}
    assert list(root.iterdir()) == []


def test_unusable_version_is_removed_again(tmp_path: Path, root: Path) -> None:
    with pytest.raises(ConfigError, match="no file that is known as a model"):
        add_version(root, "m", source(tmp_path, "weights.bin"))
    assert list(root.iterdir()) == []
    add_version(root, "m", source(tmp_path, "model.onnx"))
    (root / "m" / "config.pbtxt").write_text("broken")
    with pytest.raises(ConfigError, match=r"config\.pbtxt, line 1"):
        add_version(root, "m", tmp_path / "source")
    assert {entry.name for entry in (root / "m").iterdir()} == {"1", "config.pbtxt"}


def test_missing_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        add_version(tmp_path / "none", "m", source(tmp_path, "model.onnx"))
