"""Meeting place of the ranks of an engine: a file by which they find each other, in a folder of this user alone."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "headrace-ranks-"
LEFTOVER_S = 3600.0  # age of a folder whose engine must be gone: ranks meet within minutes


@contextmanager
def meeting_place() -> Iterator[Path]:
    """Yield the path of the file. Its folder is deleted afterwards; those that killed engines left, before."""
    _remove_leftovers(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        yield Path(folder) / "store"


def _remove_leftovers(root: Path) -> None:
    for folder in root.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another engine deletes it too
            found = folder.lstat()
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
            if is_ours and time.time() - found.st_mtime > LEFTOVER_S:
                shutil.rmtree(folder)
