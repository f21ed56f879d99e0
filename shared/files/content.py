"""Contents of files, on a disk that the API and the tasks share. A file appears only once it is complete."""

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
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
ORPHAN_AGE_S = 3600.0  # without a write, after which a file without a record was left by a crash


def new_file_id() -> str:
    return f"file-{secrets.token_hex(16)}"


class Draft:
    """A file that is being written, under a temporary name until it is kept.

    Args:
        target: its final path.
        most: maximum bytes.
    """

    def __init__(self, target: Path, most: int | None = None) -> None:
        self._target = target
        self._most = most
        self.size = 0
        target.parent.mkdir(parents=True, exist_ok=True)
        self._path = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        self._stream: IO[bytes] = self._path.open("xb")

    def write(self, data: bytes) -> None:
        """Append data. Raises PayloadTooLarge, StorageFull."""
        self.size += len(data)
        if self._most is not None and self.size > self._most:
            raise PayloadTooLarge(f"the file must not exceed {self._most} bytes", param="file")
        with storing():
            self._stream.write(data)

    def keep(self) -> None:
        """Make the content durable, then its name. Raises StorageFull."""
        with storing():
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._path.replace(self._target)
        sync_folder(self._target.parent)

    def discard(self) -> None:
        """Delete the draft; do nothing after `keep`."""
        self._stream.close()
        self._path.unlink(missing_ok=True)


@contextmanager
def storing() -> Iterator[None]:
    """Raise StorageFull if the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise StorageFull("the server's disk is full") from error
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Contents:
    """Contents of all files in one folder, each named by its id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def draft(self, file_id: str, most: int | None = None) -> Draft:
        return Draft(self._folder / _checked(file_id), most)

    def find(self, file_id: str) -> Path:
        """Return the path of a content. Raises NotFound."""
        path = self._folder / _checked(file_id)
        if not path.is_file():
            raise NotFound(f"the content of {file_id!r} is missing")
        return path

    def delete(self, file_id: str) -> None:
        (self._folder / _checked(file_id)).unlink(missing_ok=True)

    def orphan_candidates(self) -> Iterator[Path]:
        """Yield paths that were not written to for ORPHAN_AGE_S; files with a record are among them."""
        if not self._folder.is_dir():
            return
        limit = time.time() - ORPHAN_AGE_S
        for path in self._folder.iterdir():
            if path.stat().st_mtime < limit:
                yield path


def _checked(file_id: str) -> str:
    """Check an id before it becomes a name on disk. Raises NotFound."""
    if not FILE_ID.fullmatch(file_id):
        raise NotFound(f"there is no file {file_id[:64]!r}")
    return file_id
