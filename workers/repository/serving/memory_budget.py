"""Memory budget of the models in one worker process: what each holds, and which leave to make room for others."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shared.errors import ConfigError
from shared.settings import parse_memory

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
BUSY_POLL_S = 0.1  # between looks for an idle model, while all that could leave have requests
MIB = 2**20


class MemoryExceeded(ConfigError):
    """The budget has no room for a model."""


@dataclass(frozen=True)
class Holder:
    """A version that holds memory; `stamp` differs between two sets of files of one version."""

    model: str
    version: int
    stamp: str

    def __str__(self) -> str:
        return f"{self.model} version {self.version}"


class Leaver(Protocol):
    """A loaded model that may leave."""

    @property
    def used_at(self) -> float:
        """Return when it had a request last, by time.monotonic."""

    async def leave(self) -> None:
        """Unload it."""


class MemoryBudget:
    """Shares a number of bytes among models.

    Args:
        total: bytes.
        idle: returns the models, other than the named one, that may leave and have no requests.
        may_leave: returns True if the model of that name may leave once it has no requests.
    """

    def __init__(
        self, total: int, idle: Callable[[str], Sequence[Leaver]], may_leave: Callable[[str], bool]
    ) -> None:
        self.total = total
        self._idle = idle
        self._may_leave = may_leave
        self._held: dict[Holder, int] = {}
        self._known: dict[Holder, int] = {}  # what was found to be held once it was loaded
        self._lock = asyncio.Lock()

    @property
    def free(self) -> int:
        return self.total - sum(self._held.values())

    async def reserve(self, holder: Holder, estimate: int) -> None:
        """Hold memory for what is about to be loaded: what it held before, or the estimate.

        Idle models leave, the least recently used first; while models that may leave have requests, it waits.
        Raises MemoryExceeded if the memory cannot be had.
        """
        await self._take(holder, self._known.get(holder, estimate))

    async def hold(self, holder: Holder, held: int) -> None:
        """Replace what was reserved by what the loaded version holds; see `reserve`."""
        self._known[holder] = held
        await self._take(holder, held)

    async def _take(self, holder: Holder, needed: int) -> None:
        async with self._lock:
            before = self._held.pop(holder, 0)
            try:
                await self._make_room(holder, needed)
            except BaseException:
                self._held[holder] = before
                raise
            self._held[holder] = needed

    async def _make_room(self, holder: Holder, needed: int) -> None:
        if needed > self.total:
            raise MemoryExceeded(
                f"{holder} needs {_mib(needed)} of memory, more than model_memory, which is {_mib(self.total)}",
                param="model_memory",
            )
        while needed > self.free:
            if leavers := self._idle(holder.model):
                await min(leavers, key=lambda model: model.used_at).leave()
            elif any(self._may_leave(other.model) for other in self._held if other.model != holder.model):
                await asyncio.sleep(BUSY_POLL_S)
            else:
                raise MemoryExceeded(
                    f"{holder} needs {_mib(needed)} of memory; other models leave {_mib(max(0, self.free))} of "
                    f"model_memory, which is {_mib(self.total)}",
                    param="model_memory",
                )

    def release(self, holder: Holder) -> None:
        self._held.pop(holder, None)


def budget_bytes(model_memory: str) -> int:
    """Return the bytes that a setting `model_memory` stands for on this machine."""
    amount, is_share = parse_memory(model_memory)
    return int(amount * machine_memory()) if is_share else int(amount)


def machine_memory() -> int:
    """Return the memory of the machine, or of the container, in bytes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # "max" without a limit
        total = min(total, int(CGROUP_LIMIT.read_text(encoding="ascii")))
    return total


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file())


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"
