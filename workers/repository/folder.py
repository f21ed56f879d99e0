"""The folder of a model repository: one folder for each model, with its description and its versions.

    REPOSITORY/MODEL/config.pbtxt or model.toml, or neither
    REPOSITORY/MODEL/1/model.onnx

A model that needs no file (an ensemble, or one whose settings name it), and one whose own folder is a checkpoint of
Hugging Face, need no folder of a version: their version is 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from shared.errors import ConfigError
from shared.models.names import MODEL_NAME, VERSION
from shared.models.weight_files import GGUF_NAME, weight_files
from shared.repository.backends import BACKENDS, CHECKPOINT, HEADRACE, Backend
from shared.repository.model_config import MAX_CONFIG_CHARS, config_from_json, ignored_fields, spec_from_config
from shared.repository.model_config_pb2 import ModelConfig
from shared.repository.order_files import MAX_FILES
from shared.repository.spec import ModelSpec
from workers.repository.model_toml import parse_model_toml
from workers.repository.pbtxt import parse_pbtxt

_DESCRIPTIONS = {"config.pbtxt": parse_pbtxt, "model.toml": parse_model_toml}


@dataclass(frozen=True)
class FoundModel:
    """A usable model of the repository.

    Attributes:
        spec: without what only the model's file says.
        versions: folder of each version that its policy chooses, oldest first.
        ignored: fields of its description that have no effect.
    """

    spec: ModelSpec
    folder: Path
    versions: Mapping[int, Path]
    ignored: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.spec.name


@dataclass(frozen=True)
class BrokenModel:
    """A folder of the repository that cannot be used as a model."""

    name: str
    reason: str


def scan(root: Path) -> list[FoundModel | BrokenModel]:
    """Return the models of a repository, by name. Raises ConfigError if it cannot be read at all.

    Files and hidden folders beside the models are passed over.
    """
    try:
        names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        raise ConfigError(f"the model repository {root} cannot be read: {error.strerror}") from error
    return [_read_or_explain(root, name) for name in names]


def _read_or_explain(root: Path, name: str) -> FoundModel | BrokenModel:
    try:
        return read_model(root, name)
    except ConfigError as error:
        return BrokenModel(name, error.message)


def read_model(root: Path, name: str, config: str = "") -> FoundModel:
    """Return one model of a repository.

    Args:
        root: the repository.
        name: of the model and its folder.
        config: a ModelConfig as JSON text in place of the description in the folder; "" for none.

    Raises ConfigError that says what cannot be used: file, line and field of a description.
    """
    check_name(name)
    folder = root / name
    try:
        return _read_model(root, folder, config)
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror or error}") from error


def check_name(name: str) -> None:
    """Raise ConfigError if a model's name cannot be that of its folder."""
    if not MODEL_NAME.fullmatch(name) or "/" in name:
        raise ConfigError(f"the model's folder must match {MODEL_NAME.pattern}, without '/', got {name[:200]!r}")


def version_folders(folder: Path) -> dict[int, Path]:
    """Return the folders of a model's versions, by number. Raises OSError."""
    return {int(each.name): each for each in folder.iterdir() if VERSION.fullmatch(each.name) and each.is_dir()}


def _read_model(root: Path, folder: Path, config: str) -> FoundModel:
    if not folder.is_dir():
        raise ConfigError(f"the repository has no model {folder.name}")
    _check_links(root, folder)
    message = config_from_json(config) if config else _description(folder)
    available = _versions(message, folder)
    if not (message.backend or message.platform or message.HasField("ensemble_scheduling")):
        message.backend = _guess_backend(available[max(available)], message.default_model_filename)
    spec = spec_from_config(message, folder.name)
    chosen = spec.version_policy.choose(list(available))
    if not chosen:
        raise ConfigError(f"{folder.name} has none of the versions in version_policy.specific")
    versions = {version: available[version] for version in chosen}
    return FoundModel(spec, folder, versions, tuple(ignored_fields(message)))


def _versions(message: ModelConfig, folder: Path) -> dict[int, Path]:
    """Return the folders of a model's versions. Raises ConfigError if it has none."""
    folders = version_folders(folder)
    if not folders and not _needs_no_version(message, folder):
        raise ConfigError(f"{folder.name} has no folder of a version, such as {folder.name}/1")
    return folders or {1: folder}


def _check_links(root: Path, folder: Path) -> None:
    """Raise ConfigError for a link that leads out of the repository, or for too many files."""
    home = root.resolve()
    entries = list(islice(_entries(folder), MAX_FILES + 1))
    if len(entries) > MAX_FILES:
        raise ConfigError(f"{folder.name} must have at most {MAX_FILES} files")
    for entry in entries:
        if entry.is_symlink() and not entry.resolve().is_relative_to(home):
            raise ConfigError(f"{entry.relative_to(root)} is a link that leads out of the repository")


def _entries(folder: Path) -> Iterator[Path]:
    """Yield a folder and all that is in it, without following links to folders."""
    yield folder
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            yield from _entries(entry)
        else:
            yield entry


def _description(folder: Path) -> ModelConfig:
    found = [name for name in _DESCRIPTIONS if (folder / name).exists()]
    if len(found) > 1:
        raise ConfigError(f"{folder.name} must have one of {' and '.join(found)}")
    for name in found:
        return _DESCRIPTIONS[name](_read_text(folder / name), f"{folder.name}/{name}")
    return ModelConfig()


def _read_text(file: Path) -> str:
    with file.open("rb") as stream:
        content = stream.read(MAX_CONFIG_CHARS + 1)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file.parent.name}/{file.name}, line {line}: must be UTF-8") from error


def _needs_no_version(message: ModelConfig, folder: Path) -> bool:
    if message.HasField("ensemble_scheduling") or is_checkpoint(folder):
        return True
    return message.backend in ("", HEADRACE) and "model" in message.parameters


def is_checkpoint(folder: Path) -> bool:
    """Return True for a model folder of Hugging Face, and for one with a GGUF file."""
    return (folder / GGUF_NAME).is_file() or ((folder / CHECKPOINT).is_file() and bool(weight_files(folder)))


def _guess_backend(version: Path, file: str) -> str:
    """Return the backend that the names of a version's files show.

    Args:
        version: the version's folder.
        file: the name of the model's file, if its description says it.
    """
    if is_checkpoint(version):
        return HEADRACE
    names = [file] if file else [entry.name for entry in version.iterdir()]
    found = [backend for backend in BACKENDS.values() if any(_may_be(name, backend, bool(file)) for name in names)]
    if len(found) != 1:
        known = ", ".join(name for backend in BACKENDS.values() for name in backend.files)
        problem = "several files that may be the model" if found else "no file that is known as a model"
        raise ConfigError(f"{version.parent.name}/{version.name} has {problem} ({known}): set backend")
    return found[0].name


def _may_be(name: str, backend: Backend, named: bool) -> bool:
    """Return True if a file may be a backend's model; one that the description names may have any stem."""
    files = [each for each in backend.files if each != CHECKPOINT]
    if named:
        return PurePosixPath(name).suffix in (PurePosixPath(each).suffix for each in files)
    return name in files
