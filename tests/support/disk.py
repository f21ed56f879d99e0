"""A disk's faults under the store's append-only file: no space, and what a machine's death takes with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from shared.redis.embedded import EmbeddedServer

LOOK = 0.02  # seconds between looks at the file's size


def append_only_file(store: EmbeddedServer) -> Path:
    """The file that is being appended to."""
    [file] = store.folder.glob("appendonlydir/*.incr.aof")
    return file


@contextlib.contextmanager
def full_disk(store: EmbeddedServer) -> Iterator[None]:
    """The append-only file can grow no more.

    By a limit on the size of files, which needs no privilege and which every process of the store inherits: a write
    fails with EFBIG where a full disk gives ENOSPC.
    """
    assert store.pid is not None
    size = append_only_file(store).stat().st_size
    _, hard = resource.prlimit(store.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(store.pid, resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        if store.pid is not None:
            resource.prlimit(store.pid, resource.RLIMIT_FSIZE, (hard, hard))


class Journal:
    """Remembers how long the append-only file was at each moment."""

    def __init__(self, store: EmbeddedServer) -> None:
        self._file = append_only_file(store)
        self._sizes: list[tuple[float, int]] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            self._sizes.append((time.monotonic(), self._file.stat().st_size))
            await asyncio.sleep(LOOK)

    def cut(self, moment: float) -> None:
        """Make the file what it was at `moment`, by time.monotonic; the store must be down."""
        assert self._sizes[0][0] <= moment
        later = [size for when, size in self._sizes if when >= moment]
        if later:
            os.truncate(self._file, later[0])
