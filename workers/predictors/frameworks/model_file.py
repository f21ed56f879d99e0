"""The file or folder of a version that holds the model."""

from __future__ import annotations

from pathlib import Path

from shared.errors import ConfigError
from shared.repository.spec import ModelSpec


def find(spec: ModelSpec, folder: Path, names: tuple[str, ...]) -> Path:
    """Return the path that the description names, or else the first of `names` that exists. Raises ConfigError."""
    wanted = (spec.default_model_filename,) if spec.default_model_filename else names
    for name in wanted:
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"default_model_filename of model {spec.name} must be inside the version's folder, got {name!r}"
            )
        if path.exists():
            return path
    raise ConfigError(f"model {spec.name}: version {folder.name} has no {' or '.join(wanted)}")


def size(path: Path) -> int:
    """Return the bytes of a file, or of the files in a folder."""
    if path.is_dir():
        return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    return path.stat().st_size


def unusable(spec: ModelSpec, path: Path, reason: object) -> ConfigError:
    """Return the error for a file that cannot be loaded."""
    return ConfigError(f"model {spec.name}: {path.parent.name}/{path.name} cannot be loaded: {reason}")
