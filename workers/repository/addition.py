"""Addition of a model, or of a version of one, to a repository: complete, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from shared.errors import ConfigError
from shared.repository.backends import BACKENDS, CHECKPOINT
from workers.repository.folder import FoundModel, check_name, read_model, version_folders

_SAVED_MODEL = "saved_model.pb"  # in a SavedModel of TensorFlow, which is a folder


def add_version(root: Path, name: str, source: Path) -> tuple[int, FoundModel]:
    """Copy a model's file or folder into a repository as its next version. Return the version and the model.

    Workers see the version when all of its files are there. It is removed again if the model is unusable with it.

    Raises ConfigError that says why.
    """
    check_name(name)
    if not root.is_dir():
        raise ConfigError(f"the model repository {root} is not a folder")
    try:
        with tempfile.TemporaryDirectory(prefix=".adding-", dir=root) as staged:
            copied = _copy(source, Path(staged) / name / "files")
            added = _publish(copied, root / name)
    except (OSError, shutil.Error) as error:
        raise ConfigError(f"{source} cannot be copied into {root}: {error}") from error
    try:
        return int(added.name), read_model(root, name)
    except ConfigError:
        shutil.rmtree(added)
        if not any((root / name).iterdir()):
            (root / name).rmdir()
        raise


def _copy(source: Path, folder: Path) -> Path:
    """Copy a model to the new folder of a version, under the name that its backend expects."""
    if source.is_dir() and not (source / _SAVED_MODEL).exists():
        shutil.copytree(source, folder)
        return folder
    folder.mkdir(parents=True)
    if source.is_dir():
        shutil.copytree(source, folder / "model.savedmodel")
    elif source.is_file():
        shutil.copyfile(source, folder / _expected_name(source))
    else:
        raise ConfigError(f"{source} does not exist")
    return folder


def _expected_name(source: Path) -> str:
    """Return the name of a model's file in a repository. Raises ConfigError for a file of an unknown kind."""
    known = [file for backend in BACKENDS.values() for file in backend.files if file != CHECKPOINT]
    for file in known:
        if Path(file).suffix == source.suffix:
            return file
    suffixes = ", ".join(sorted({Path(file).suffix for file in known}))
    raise ConfigError(f"{source.name} must be a folder, or a file whose name ends with {suffixes}")


def _publish(copied: Path, folder: Path) -> Path:
    """Move the copied files to the folder of the model's next version."""
    if not folder.exists():
        first = copied.rename(copied.with_name("1"))
        try:
            return first.parent.rename(folder) / "1"
        except OSError:  # another process made the model in the meantime
            copied = first
    version = max(version_folders(folder), default=0)
    while True:
        version += 1
        try:
            return copied.rename(folder / str(version))  # fails if a folder of that name has files
        except OSError:
            if not (folder / str(version)).exists():
                raise
