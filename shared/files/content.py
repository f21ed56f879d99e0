"""The bytes of files on a disk that the API and the tasks share: whole or not there, never half.

It knows nothing of tenants or of what a file is for.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from shared.errors import NotFound, PayloadTooLarge, StorageFull

FILE_ID = re.compile(r"file-[0-9a-f]{32}")
FULL = (errno.ENOSPC, errno.EDQUOT)
LEFT_OVER = 3600.0  # seconds without a write after which a file that nobody knows was left by a crash


def new_file_id() -> str:
    return f"file-{secrets.token_hex(16)}"


class Draft:
    """A file that is being written, in a place of its own until it is kept.

    Args:
        target: where it will be, whole.
        most: bytes that it may have.
    """

    def __init__(self, target: Path, most: int | None = None) -> None:
        self._target = target
        self._most = most
        self.size = 0
        target.parent.mkdir(parents=True, exist_ok=True)
        self._path = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        self._stream: IO[bytes] = self._path.open("xb")

    def write(self, data: bytes) -> None:
        """Raises PayloadTooLarge, StorageFull."""
        self.size += len(data)
        if self._most is not None and self.size > self._most:
            raise PayloadTooLarge(f"the file is larger than {self._most} bytes", param="file")
        with storing():
            self._stream.write(data)

    def keep(self) -> None:
        """Durable from now on: content, then name. Raises StorageFull."""
        with storing():
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._path.replace(self._target)
        sync_folder(self._target.parent)

    def discard(self) -> None:
        """After `keep` there is nothing to do."""
        self._stream.close()
        self._path.unlink(missing_ok=True)


@contextmanager
def storing() -> Iterator[None]:
    """Raise StorageFull where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageFull("the server's disk is full") from error
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in it durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Contents:
    """Every file's content below one folder, named by its id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def draft(self, file_id: str, most: int | None = None) -> Draft:
        return Draft(self._folder / _checked(file_id), most)

    def find(self, file_id: str) -> Path:
        """Raises NotFound."""
        path = self._folder / _checked(file_id)
        if not path.is_file():
            raise NotFound(f"the content of {file_id!r} is not there")
        return path

    def delete(self, file_id: str) -> None:
        (self._folder / _checked(file_id)).unlink(missing_ok=True)

    def left_over(self) -> Iterator[Path]:
        """What has not been written for so long that whoever wrote it is gone; known files are among it."""
        if not self._folder.is_dir():
            return
        limit = time.time() - LEFT_OVER
        for path in self._folder.iterdir():
            if path.stat().st_mtime < limit:
                yield path


def _checked(file_id: str) -> str:
    """An id becomes a name on disk: nothing but an id may."""
    if not FILE_ID.fullmatch(file_id):
        raise NotFound(f"there is no file {file_id[:64]!r}")
    return file_id
