"""The file or folder of a version that holds the model."""

from __future__ import annotations

from pathlib import Path

from shared.errors import ConfigError
from shared.repository.backends import BACKENDS
from shared.repository.spec import ModelSpec


def find(spec: ModelSpec, folder: Path) -> Path:
    """Return the named path, or else the first of the backend's names that exists. Raises ConfigError."""
    given = spec.default_model_filename
    wanted = (given,) if given else BACKENDS[spec.backend].files
    for name in wanted:
        if (folder / name).exists():
            return folder / name
    raise ConfigError(f"model {spec.name}: version {folder.name} has no {' or '.join(wanted)}")


def size(path: Path) -> int:
    """Return the bytes of a file, or of the files in a folder."""
    if path.is_dir():
        return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    return path.stat().st_size


def unusable(spec: ModelSpec, path: Path, reason: object) -> ConfigError:
    """Return the error for a file that cannot be loaded."""
    return ConfigError(f"model {spec.name}: {path.parent.name}/{path.name} cannot be loaded: {reason}")
