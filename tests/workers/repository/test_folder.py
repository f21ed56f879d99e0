"""Tests of the folder of a model repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import ConfigError
from workers.predictors.frameworks.model_file import find
from workers.repository.folder import BrokenModel, FoundModel, read_model, scan


def write(root: Path, *names: str, **texts: str) -> None:
    """Write empty files, and files with texts: `config` is config.pbtxt, `toml` is model.toml of a model `m`."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for kind, text in texts.items():
        (root / "m").mkdir(exist_ok=True)
        (root / "m" / {"config": "config.pbtxt", "toml": "model.toml"}[kind]).write_text(text)


def reason(root: Path, name: str = "m", config: str = "") -> str:
    with pytest.raises(ConfigError) as raised:
        read_model(root, name, config)
    return raised.value.message


@pytest.mark.parametrize(
    ("file", "backend"),
    [
        ("model.onnx", "onnxruntime"),
        ("model.pt", "pytorch"),
        ("model.pt2", "pytorch"),
        ("model.savedmodel/saved_model.pb", "tensorflow"),
        ("model.skops", "sklearn"),
        ("model.json", "xgboost"),
        ("model.ubj", "xgboost"),
        ("model.txt", "lightgbm"),
        ("model.py", "python"),
    ],
)
def test_backend_is_guessed_from_the_file(tmp_path: Path, file: str, backend: str) -> None:
    write(tmp_path, f"m/1/{file}")
    found = read_model(tmp_path, "m")
    assert found.spec.backend == backend
    assert find(found.spec, found.versions[1]) == tmp_path / "m" / "1" / file.partition("/")[0]


def test_backend_is_guessed_from_a_file_with_another_name(tmp_path: Path) -> None:
    write(tmp_path, "m/1/net.onnx", config='default_model_filename: "net.onnx"')
    assert read_model(tmp_path, "m").spec.backend == "onnxruntime"


@pytest.mark.parametrize("folder", ["m", "m/1"])
def test_checkpoint_is_a_model_of_headrace(tmp_path: Path, folder: str) -> None:
    write(tmp_path, f"{folder}/config.json", f"{folder}/model.safetensors")
    found = read_model(tmp_path, "m")
    assert found.spec.backend == "headrace"
    assert found.versions == {1: tmp_path / folder}


@pytest.mark.parametrize("file", ["m/model.gguf", "m/1/model.gguf", "m/1/net.Q8_0.gguf"])
def test_gguf_file_is_a_model_of_headrace(tmp_path: Path, file: str) -> None:
    config = {"config": 'default_model_filename: "net.Q8_0.gguf"'} if "net" in file else {}
    write(tmp_path, file, **config)
    found = read_model(tmp_path, "m")
    assert found.spec.backend == "headrace"
    assert found.versions == {1: (tmp_path / file).parent}


def test_model_of_settings_needs_no_version(tmp_path: Path) -> None:
    write(tmp_path, toml='backend = "headrace"\nsettings.model = "smollm2"')
    found = read_model(tmp_path, "m")
    assert (found.spec.settings, found.versions) == ({"model": "smollm2"}, {1: tmp_path / "m"})


def test_versions_follow_the_policy(tmp_path: Path) -> None:
    write(tmp_path, *(f"m/{version}/model.onnx" for version in ("2", "10", "9", "01", "0", "-1", "x", "9" * 19)))
    assert list(read_model(tmp_path, "m").versions) == [10]
    write(tmp_path, config="version_policy { latest { num_versions: 2 } }")
    assert list(read_model(tmp_path, "m").versions) == [9, 10]
    write(tmp_path, config="version_policy { all { } }")
    assert list(read_model(tmp_path, "m").versions) == [2, 9, 10]
    write(tmp_path, config="version_policy { specific { versions: [ 2, 3 ] } }")
    assert list(read_model(tmp_path, "m").versions) == [2]
    write(tmp_path, config="version_policy { specific { versions: 3 } }")
    assert "none of the versions" in reason(tmp_path)


def test_config_of_an_order_replaces_the_description(tmp_path: Path) -> None:
    write(tmp_path, "m/1/model.onnx", config="broken")
    found = read_model(tmp_path, "m", '{"max_batch_size": 4, "runtime": "x"}')
    assert (found.spec.max_batch_size, found.spec.backend, found.ignored) == (4, "onnxruntime", ("runtime",))


def test_broken_models_leave_the_others_alone(tmp_path: Path) -> None:
    write(tmp_path, "README.md", ".git/HEAD", "m/1/model.onnx", "good/1/model.onnx", "b ad/1/model.onnx", "empty/x")
    write(tmp_path, config="\nmax_batch_size: x")
    found = scan(tmp_path)
    assert [each.name for each in found] == ["b ad", "empty", "good", "m"]
    assert isinstance(found[2], FoundModel)
    reasons = {each.name: each.reason for each in found if isinstance(each, BrokenModel)}
    assert "must match" in reasons["b ad"]
    assert reasons["empty"] == "empty has no folder of a version, such as empty/1"
    assert reasons["m"].startswith("m/config.pbtxt, line 2, field max_batch_size:")


@pytest.mark.parametrize("name", ["..", "../m", "a/../m", "a/m", "", ".", "/m", "m\0", "m" * 129])
def test_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, "m/1/model.onnx", "a/m/1/model.onnx")
    assert "folder must match" in reason(tmp_path / "a", name)


def test_missing_model_is_named(tmp_path: Path) -> None:
    assert reason(tmp_path) == "the repository has no model m"


@pytest.mark.parametrize("link", ["m", "m/1", "m/1/model.onnx", "m/config.pbtxt", "m/1/data/weights"])
def test_link_that_leads_out_is_refused(tmp_path: Path, link: str) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    write(root, "m/1/data/other")
    target = root / link
    if target.is_dir():
        target.rename(outside / "moved")
    target.symlink_to(outside / "moved")
    assert reason(root).endswith("is a link that leads out of the repository")


def test_link_within_the_repository_is_followed(tmp_path: Path) -> None:
    write(tmp_path, "blobs/x", "m/1/other")
    (tmp_path / "m/1/model.onnx").symlink_to(tmp_path / "blobs/x")
    assert read_model(tmp_path, "m").spec.backend == "onnxruntime"


def test_repository_itself_may_be_a_link(tmp_path: Path) -> None:
    write(tmp_path / "real", "m/1/model.onnx")
    (tmp_path / "root").symlink_to(tmp_path / "real")
    assert isinstance(scan(tmp_path / "root")[0], FoundModel)


@pytest.mark.parametrize(
    ("names", "texts", "problem"),
    [
        (["m/1/model.onnx", "m/1/model.py"], {}, "m/1 has several files that may be the model"),
        (["m/1/weights.bin"], {}, "m/1 has no file that is known as a model"),
        (["m/1/model.onnx"], {"config": "", "toml": ""}, "m must have one of config.pbtxt and model.toml"),
        (["m/1/model.onnx"], {"config": 'name: "n"'}, "name must be m or absent, got 'n'"),
        (
            ["m/1/x"],
            {"config": 'default_model_filename: "/x.onnx"'},
            "default_model_filename must be a relative",
        ),
    ],
)
def test_unusable_folder_is_explained(
    tmp_path: Path, names: list[str], texts: dict[str, str], problem: str
) -> None:
    write(tmp_path, *names, **texts)
    assert reason(tmp_path).startswith(problem)


def test_description_must_be_utf8(tmp_path: Path) -> None:
    write(tmp_path, "m/1/model.onnx")
    (tmp_path / "m" / "config.pbtxt").write_bytes(b'name: "m"\n# \xff')
    assert reason(tmp_path) == "m/config.pbtxt, line 2: must be UTF-8"


def test_missing_file_of_a_model_is_named(tmp_path: Path) -> None:
    write(tmp_path, "m/1/x", config='backend: "pytorch"')
    found = read_model(tmp_path, "m")
    with pytest.raises(ConfigError, match=r"model m: version 1 has no model\.pt2? or model\.pt2?"):
        find(found.spec, found.versions[1])


def test_missing_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        scan(tmp_path / "none")
