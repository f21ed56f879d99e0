"""Files of a model's folder that its description names."""

from __future__ import annotations

from pathlib import Path

from shared.errors import ConfigError


def read_model_file(folder: Path, name: str) -> bytes:
    """Return the contents of a file in the folder. Raises ConfigError if it is elsewhere, or cannot be read."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ConfigError(f"{name} must be a file in the folder of its model")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
