"""The files that an order to load a model brings along."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from shared.errors import ConfigError
from shared.models.names import VERSION

MAX_FILES = 10_000  # of a model
MAX_PATH_PARTS = 16
MAX_PART_BYTES = 255  # as Linux' file systems
_FILE_PATH = re.compile(rf"{VERSION.pattern}/[^\\\0-\x1f]+")


def check_file_path(path: str) -> None:
    """Raise ConfigError unless `path` is VERSION/NAME; NAME may have folders of its own, and leads out of none."""
    parts = path.split("/")
    wrong = any(part in ("", ".", "..") for part in parts) or len(parts) > MAX_PATH_PARTS
    if not _FILE_PATH.fullmatch(path) or wrong or any(len(_encoded(part)) > MAX_PART_BYTES for part in parts):
        name = f"file:{path[:200]}"
        raise ConfigError(f"{name} must be file:VERSION/NAME, without parts '.' and '..'", param=name)


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Write the files of an order into a new folder. Raises ConfigError for the first path that cannot be used."""
    if len(files) > MAX_FILES:
        raise ConfigError(f"an order must have at most {MAX_FILES} files, got {len(files)}", param="files")
    for path, content in files.items():
        check_file_path(path)
        target = folder / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        except (OSError, ValueError) as error:  # a file where another path has a folder; a lone surrogate
            raise ConfigError(
                f"file:{path[:200]} cannot be written: {error}", param=f"file:{path[:200]}"
            ) from error


def _encoded(text: str) -> bytes:
    return text.encode(errors="replace")
