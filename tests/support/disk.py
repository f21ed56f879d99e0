"""Disk faults under the store's append-only file: no space left, and unsynced data lost in a power failure."""

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

POLL_S = 0.02


def append_only_file(store: EmbeddedServer) -> Path:
    """Return the file to which the store appends."""
    [file] = store.folder.glob("appendonlydir/*.incr.aof")
    return file


@contextlib.contextmanager
def full_disk(store: EmbeddedServer) -> Iterator[None]:
    """While the body runs, keep the append-only file from growing.

    It sets a limit on the file size, which needs no privilege and which every process of the store inherits. A
    write fails with EFBIG instead of the ENOSPC of a full disk.
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


class SizeRecorder:
    """Recorder of the append-only file's size over time."""

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
            await asyncio.sleep(POLL_S)

    def cut(self, moment: float) -> None:
        """Cut the file to its size at `moment`, a time.monotonic value. The store must be down."""
        assert self._sizes[0][0] <= moment
        later = [size for when, size in self._sizes if when >= moment]
        if later:
            os.truncate(self._file, later[0])
