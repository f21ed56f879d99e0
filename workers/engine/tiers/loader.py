"""Loading of blocks from the store into reserved blocks of the cache, beside the engine's thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence as Keys
from dataclasses import dataclass, field

from workers.engine.sequence import Sequence
from workers.engine.tiers.background import Background
from workers.engine.tiers.block_memory import BlockMemory
from workers.engine.tiers.codec import BlockCodec
from workers.engine.tiers.rates import Rates
from workers.engine.tiers.store import StoreGuard

MAX_JOBS = 256  # of each thread
GROUP_BYTES = 4 * 2**20  # read by one call
HUNG_S = 5.0  # a call that takes longer keeps new sequences from waiting
MEASURED_BLOCKS = 4  # read to measure a store that did not pay


@dataclass(eq=False)
class Ticket:
    """The wait of one sequence for its blocks.

    Attributes:
        first: number of the first block that may be loaded; those before it are in the cache.
        keys: of the blocks from `first` on.
        deadline: until when the current phase may last, by time.monotonic.
        found: how many of the keys the store has, once it was asked.
        blocks: reserved blocks, for the first keys.
        loaded: how many of them are complete.
        ended: the loading is over, whether it succeeded or not.
        closed: the blocks must not be written any more.
        lock: held while a block is written, and to close the ticket.
    """

    sequence: Sequence
    first: int
    keys: Keys[bytes]
    deadline: float
    found: int | None = None
    before: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    loaded: int = 0
    ended: bool = False
    closed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def close(self) -> None:
        with self.lock:
            self.closed = True


class Loader:
    """Looks blocks up, and reads them, in two threads: a lookup does not wait for the loads before it.

    Attributes:
        changed: set when a ticket has got further.
        loaded_bytes, load_seconds, damaged: see `TierStats`.
    """

    def __init__(
        self, memory: BlockMemory, codec: BlockCodec, guard: StoreGuard, rates: Rates, block_size: int
    ) -> None:
        self._memory = memory
        self._codec = codec
        self._guard = guard
        self._block_size = block_size
        self._group = max(1, GROUP_BYTES // codec.value_bytes)
        self._finding = Background("kv-tier-find", MAX_JOBS)
        self._loading = Background("kv-tier-load", MAX_JOBS)
        self.rates = rates
        self.changed = threading.Event()
        self.loaded_bytes = self.damaged = 0
        self.load_seconds = 0.0

    @property
    def hangs(self) -> bool:
        return max(self._finding.busy_for(), self._loading.busy_for()) > HUNG_S

    def find(self, ticket: Ticket) -> bool:
        """Look up a ticket's keys, for `found`. Return False if it cannot be done now."""
        return self._finding.submit(lambda: self._find(ticket))

    def load(self, ticket: Ticket) -> bool:
        """Fill a ticket's blocks in order. Return False if it cannot be done now."""
        return self._loading.submit(lambda: self._load(ticket))

    def measure(self, keys: Keys[bytes]) -> None:
        """Read some blocks, only to learn how long it takes."""
        self._loading.submit(lambda: self._measure(keys[:MEASURED_BLOCKS]))

    def _find(self, ticket: Ticket) -> None:
        began, found = time.perf_counter(), None
        try:
            found = self._guard.call(self._guard.store.count, ticket.keys)
            if found is not None:
                self.rates.note_lookup(time.perf_counter() - began)
        finally:
            ticket.found = found or 0
            self.changed.set()

    def _load(self, ticket: Ticket) -> None:
        try:
            keys = ticket.keys[: len(ticket.blocks)]
            for start in range(0, len(keys), self._group):
                if not self._load_group(ticket, keys[start : start + self._group]):
                    return
        finally:
            ticket.ended = True
            self.changed.set()

    def _load_group(self, ticket: Ticket, keys: Keys[bytes]) -> bool:
        """Read and write a group of blocks. Return False if one is missing, or no sequence waits any more."""
        began = time.perf_counter()
        contents = self._read(keys)
        for content in contents:
            with ticket.lock:
                if ticket.closed:
                    return False
                self._memory.write(ticket.blocks[ticket.loaded], content)
                ticket.loaded += 1
        seconds = time.perf_counter() - began
        if contents:
            self.load_seconds += seconds
            self.loaded_bytes += len(contents) * self._codec.value_bytes
            self.rates.note_load(len(contents) * self._block_size, seconds)
        return len(contents) == len(keys)

    def _measure(self, keys: Keys[bytes]) -> None:
        began = time.perf_counter()
        if contents := self._read(keys):
            self.rates.note_load(len(contents) * self._block_size, time.perf_counter() - began)

    def _read(self, keys: Keys[bytes]) -> list[memoryview]:
        """Return the contents of the first blocks, up to one that is missing. Damaged ones are removed."""
        values = self._guard.call(self._guard.store.get, keys) or []
        contents: list[memoryview] = []
        whole = True
        for key, value in zip(keys, values, strict=False):
            content = None if value is None else self._codec.open(key, value)
            if value is not None and content is None:
                self.damaged += 1
                self._guard.call(self._guard.store.drop, key)
            whole = whole and content is not None
            if whole:
                assert content is not None
                contents.append(content)
        return contents
