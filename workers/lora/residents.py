"""The adapters in a worker's memory: loaded when a request needs one, the least recently used leaves first.

An adapter that a request runs with stays. If all stay, further requests wait for room, the most urgent first. Once
a request has waited for PATIENCE_S, later ones for adapters that are in memory do not overtake it any more: these
might stay forever.
"""

from __future__ import annotations

import asyncio
import bisect
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from shared.protocol import AdapterRef

if TYPE_CHECKING:  # the weights are tensors
    from workers.engine.lora.weights import AdapterWeights

PATIENCE_S = 1.0
Load = Callable[[AdapterRef], "Awaitable[AdapterWeights]"]


@dataclass(eq=False)
class _Resident:
    """An adapter in memory, or on its way there. `users` has the runs that it stays for, and the name in each."""

    loading: asyncio.Future[AdapterWeights]
    users: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


@dataclass(eq=False)
class _Waiter:
    """A run that waits for room; `turn` orders them."""

    run_id: str
    turn: tuple[int, int]
    ref: AdapterRef
    since: float
    woken: asyncio.Future[None]


class Residents:
    """Adapters of one worker, by digest.

    Args:
        load: loads an adapter; raises HeadraceError.
        most: how many there is room for.

    Attributes:
        events: how often an adapter was `loaded`, `failed` to load, or was `evicted`.
    """

    def __init__(self, load: Load, most: int) -> None:
        self._load = load
        self._most = most
        self._residents: OrderedDict[str, _Resident] = OrderedDict()  # the least recently used first
        self._held: dict[str, _Resident] = {}  # by run
        self._waiters: list[_Waiter] = []  # by turn
        self._numbers = count()
        self.events: Counter[str] = Counter()

    @property
    def most(self) -> int:
        return self._most

    @property
    def num_loaded(self) -> int:
        return sum(each.loading.done() for each in self._residents.values())

    def running(self) -> set[str]:
        """Return the names of the adapters that runs have."""
        return {name for each in self._held.values() for name in each.users.values()}

    def waiting(self) -> set[str]:
        """Return the names of the adapters that runs wait for."""
        return {waiter.ref.name for waiter in self._waiters}

    async def acquire(self, run_id: str, ref: AdapterRef, rank: int) -> AdapterWeights:
        """Return an adapter, which stays until the run releases it. Raises HeadraceError if it cannot be loaded.

        Args:
            rank: urgency of the run, 0 for the most urgent.
        """
        turn, since = (rank, next(self._numbers)), asyncio.get_running_loop().time()
        try:
            while (resident := self._take(ref, turn)) is None:
                await self._wait(_Waiter(run_id, turn, ref, since, asyncio.get_running_loop().create_future()))
        finally:
            self._wake()
        resident.users[run_id] = ref.name
        self._held[run_id] = resident
        try:
            return await asyncio.shield(resident.loading)
        except BaseException:
            self.release(run_id)
            raise

    def release(self, run_id: str) -> None:
        """Let a run's adapter leave, if the run has one. If it still waits for room, its call is cancelled."""
        for waiter in self._waiters:
            if waiter.run_id == run_id:
                waiter.woken.cancel()
        resident = self._held.pop(run_id, None)
        if resident is not None:
            resident.users.pop(run_id, None)
            self._wake()

    def offer(self, ref: AdapterRef, weights: AdapterWeights) -> None:
        """Keep an adapter that was loaded for another reason, if there is room."""
        if ref.digest not in self._residents and not self._waiters and self._has_room():
            self._make_room()
            loaded: asyncio.Future[AdapterWeights] = asyncio.get_running_loop().create_future()
            loaded.set_result(weights)
            self._residents[ref.digest] = _Resident(loaded, names={ref.name})
            self.events["loaded"] += 1

    def drop(self, name: str) -> None:
        """Free the memory of an adapter that was unregistered, unless runs have it or it has another name too."""
        for digest, resident in list(self._residents.items()):
            resident.names.discard(name)
            if not resident.names and not resident.users and resident.loading.done():
                del self._residents[digest]
        self._wake()

    def _take(self, ref: AdapterRef, turn: tuple[int, int]) -> _Resident | None:
        """Return the resident for a run, whose loading may have begun with this call; None if it must wait."""
        if not self._may_take(ref, turn):
            return None
        resident = self._residents.get(ref.digest)
        if resident is None:
            self._make_room()
            resident = self._residents[ref.digest] = _Resident(asyncio.ensure_future(self._load(ref)))
            resident.loading.add_done_callback(partial(self._loaded, ref.digest, resident))
        self._residents.move_to_end(ref.digest)
        resident.names.add(ref.name)
        return resident

    def _may_take(self, ref: AdapterRef, turn: tuple[int, int]) -> bool:
        """Return whether a run needs not wait: for those before it, or for room."""
        first = self._waiters[0] if self._waiters else None
        is_behind = first is not None and first.turn < turn
        if ref.digest in self._residents:
            now = asyncio.get_running_loop().time()
            return first is None or not is_behind or now - first.since < PATIENCE_S
        return not is_behind and self._has_room()

    def _has_room(self) -> bool:
        return len(self._residents) < self._most or not all(each.users for each in self._residents.values())

    def _make_room(self) -> None:
        """Let the least recently used adapter leave that no run has, if there is no room otherwise."""
        if len(self._residents) >= self._most:
            digest = next(digest for digest, each in self._residents.items() if not each.users)
            del self._residents[digest]
            self.events["evicted"] += 1

    async def _wait(self, waiter: _Waiter) -> None:
        """Wait until the run may take its adapter."""
        bisect.insort(self._waiters, waiter, key=lambda each: each.turn)
        try:
            await waiter.woken
        finally:
            self._waiters.remove(waiter)

    def _wake(self) -> None:
        """Wake the waiting runs that may take their adapters."""
        for waiter in self._waiters:
            if not waiter.woken.done() and self._may_take(waiter.ref, waiter.turn):
                waiter.woken.set_result(None)

    def _loaded(self, digest: str, resident: _Resident, done: asyncio.Future[AdapterWeights]) -> None:
        failed = done.cancelled() or done.exception() is not None
        self.events["failed" if failed else "loaded"] += 1
        if failed and self._residents.get(digest) is resident:  # it may have left, and been loaded again
            del self._residents[digest]
        self._wake()
