"""What is in a folder."""

from __future__ import annotations

from pathlib import Path


def files_below(folder: Path) -> set[str]:
    """Return the paths of the files in a folder and its folders, relative to it."""
    return {str(entry.relative_to(folder)) for entry in folder.rglob("*") if entry.is_file()}
