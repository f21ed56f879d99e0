"""Store on disk: a file for each value, in a private folder that the workers of a machine share."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from shared.errors import ConfigError
from workers.engine.tiers.store import StoreFailed, Value

SUFFIX, UNFINISHED = ".kv", ".part"
NAME = re.compile(rf"[0-9a-f]{{2}}/(?:[0-9a-f]{{62}}\{SUFFIX}|[0-9a-f.]{{16,}}\{UNFINISHED})")
SLACK = 16  # part of the budget that a worker may write until it looks again at what is there
LEFTOVER_S = 3600.0  # age of an unfinished file whose writer must be gone
READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class _File(NamedTuple):
    used_at: float
    size: int
    path: str


class DiskStore:
    """Values in files; see `Store`. A file is complete from the moment at which it has its name.

    A file's time of modification says when it was used. The folder's size exceeds `budget` by at most a sixteenth
    for each worker but the first.

    Args:
        value_bytes: size of every value; a file of another size is not read.
        ttl: seconds that an unused file is kept.

    Raises:
        ConfigError: the folder cannot be used safely.
    """

    name = "disk"

    def __init__(self, folder: Path, value_bytes: int, *, budget: int, ttl: float) -> None:
        self._folder = _private(folder)
        self._value_bytes = value_bytes
        self._budget = budget
        self._slack = max(budget // SLACK, value_bytes)
        self._ttl = ttl
        self._room = 0  # bytes to write until the folder is looked at again

    def count(self, keys: Sequence[bytes]) -> int:
        try:
            return next((number for number, key in enumerate(keys) if not self._has(self._path(key))), len(keys))
        except OSError as error:
            raise StoreFailed from error

    def get(self, keys: Sequence[bytes]) -> list[Value | None]:
        return [self._read(self._path(key)) for key in keys]

    def keep(self, keys: Sequence[bytes]) -> list[bool]:
        return [self._mark(self._path(key)) for key in keys]

    def put(self, key: bytes, value: Value) -> bool:
        path = self._path(key)
        try:
            if self._room < len(value):
                self._make_room()
            if self._room < len(value):
                return False
            path.parent.mkdir(mode=0o700, exist_ok=True)
            _write(path, value)
        except IsADirectoryError:
            return False
        except FileNotFoundError as error:
            self._restore()
            raise StoreFailed from error
        except OSError as error:
            raise StoreFailed from error
        self._room -= len(value)
        return True

    def drop(self, key: bytes) -> None:
        try:
            _remove(self._path(key))
        except OSError as error:
            raise StoreFailed from error

    def _restore(self) -> None:
        """Make the folder again, for the next call, if it was deleted."""
        self._room = 0
        try:
            _private(self._folder)
        except ConfigError as error:
            raise StoreFailed from error

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self._folder / name[:2] / f"{name[2:]}{SUFFIX}"

    def _has(self, path: Path) -> bool:
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == self._value_bytes

    def _mark(self, path: Path) -> bool:
        try:
            if not self._has(path):
                return False
            os.utime(path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StoreFailed from error
        return True

    def _read(self, path: Path) -> Value | None:
        """Return a file's content; b"" for one that is not a value."""
        try:
            file = os.open(path, READ_FLAGS)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR):  # a link, a socket
                return b""
            raise StoreFailed from error
        try:
            found = os.fstat(file)
            own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
            if not own or found.st_size != self._value_bytes:
                return b""
            value = os.read(file, self._value_bytes)
            while len(value) < self._value_bytes and (more := os.read(file, self._value_bytes - len(value))):
                value += more
            os.utime(file)
        except OSError as error:
            raise StoreFailed from error
        finally:
            os.close(file)
        return value

    def _make_room(self) -> None:
        """Look at what is there, and delete the files that were not used for the longest time.

        One worker deletes at a time. The others have no room meanwhile.
        """
        with (self._folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            now, kept, total = time.time(), [], 0
            for file in self._files():
                age = now - file.used_at
                if age > self._ttl or (file.path.endswith(UNFINISHED) and age > LEFTOVER_S):
                    _remove(file.path)
                else:
                    kept.append(file)
                    total += file.size
            for file in sorted(kept):
                if total <= self._budget - self._slack:
                    break
                _remove(file.path)
                total -= file.size
            self._room = min(self._slack, self._budget - total)

    def _files(self) -> Iterator[_File]:
        """Yield the files of this and other workers. What else is in the folder is neither counted nor deleted."""
        for part in os.scandir(self._folder):
            if not part.is_dir(follow_symlinks=False):
                continue
            for each in os.scandir(part):
                if NAME.fullmatch(f"{part.name}/{each.name}"):
                    with suppress(FileNotFoundError):
                        found = each.stat(follow_symlinks=False)
                        if not stat.S_ISDIR(found.st_mode):
                            yield _File(found.st_mtime, found.st_size, each.path)


def _private(folder: Path) -> Path:
    """Make the folder, and return it. Raises ConfigError if others than its owner may write to it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.lstat(folder)
    except OSError as error:
        raise ConfigError(f"kv_tier_dir {folder} cannot be made: {error.strerror}", param="kv_tier_dir") from error
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"kv_tier_dir {folder} must be a folder, not a link", param="kv_tier_dir")
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"kv_tier_dir {folder} must belong to the worker's user, and only that user may write to it",
            param="kv_tier_dir",
        )
    return folder


def _write(path: Path, value: Value) -> None:
    part = path.with_name(f"{path.stem[:16]}.{secrets.token_hex(8)}{UNFINISHED}")
    file = os.open(part, WRITE_FLAGS, 0o600)
    try:
        rest = memoryview(value)
        while rest:
            rest = rest[os.write(file, rest) :]
    except OSError:
        _remove(part)
        raise
    finally:
        os.close(file)
    try:
        part.replace(path)
    except OSError:
        _remove(part)
        raise


def _remove(path: str | Path) -> None:
    with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
        Path(path).unlink()
