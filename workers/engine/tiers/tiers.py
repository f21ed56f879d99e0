"""The KV tier of an engine: which sequences wait for the store, and which of their blocks are saved in it.

All methods are called in the engine's thread, and none of them waits for the store.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from weakref import WeakKeyDictionary

from workers.engine.cache.block_pool import BlockPool
from workers.engine.cache.prefix_cache import PrefixCache, must_compute
from workers.engine.sequence import Sequence
from workers.engine.stats import TierStats
from workers.engine.tiers.block_memory import BlockMemory
from workers.engine.tiers.codec import BlockCodec
from workers.engine.tiers.loader import Loader, Ticket
from workers.engine.tiers.rates import Rates
from workers.engine.tiers.saver import Saver
from workers.engine.tiers.store import StoreGuard

IDLE_WAIT_S = 0.001  # of a step without work, while sequences wait for the store
NEVER = sys.maxsize  # more blocks than any sequence has
FREE_BLOCKS = 4  # that each running sequence keeps when blocks are reserved for loading


class KVTier:
    """The KV tier of an engine; see the module.

    Args:
        prefixes: whose keys identify blocks in the store; all workers that share it compute the same keys.
        min_tokens: least tokens of a sequence that are saved, and least tokens that are loaded.
    """

    def __init__(
        self,
        pool: BlockPool,
        prefixes: PrefixCache,
        memory: BlockMemory,
        codec: BlockCodec,
        guard: StoreGuard,
        *,
        rates: Rates,
        block_size: int,
        min_tokens: int,
    ) -> None:
        self._pool = pool
        self.prefixes = prefixes
        self._guard = guard
        self._block_size = block_size
        self._min_blocks = -(-min_tokens // block_size)
        self._loader = Loader(memory, codec, guard, rates, block_size)
        self._saver = Saver(pool, memory, codec, guard)
        self._tickets: dict[Sequence, Ticket] = {}
        self._saved: WeakKeyDictionary[Sequence, int] = WeakKeyDictionary()  # blocks that were queued
        self._queries = self._hits = 0

    @property
    def rates(self) -> Rates:
        """The measured rates; tests replace them."""
        return self._loader.rates

    @rates.setter
    def rates(self, rates: Rates) -> None:
        self._loader.rates = rates

    @property
    def num_waiting(self) -> int:
        return len(self._tickets)

    def stats(self) -> TierStats:
        return TierStats(
            queries=self._queries,
            hits=self._hits,
            loaded_bytes=self._loader.loaded_bytes,
            saved_bytes=self._saver.saved_bytes,
            load_seconds=self._loader.load_seconds,
            drops=self._saver.drops,
            damaged=self._loader.damaged,
            failures=self._guard.failures,
            pending=self._saver.pending,
        )

    def hold(self, sequence: Sequence) -> bool:
        """Let a new sequence wait for its blocks, if that may pay. Return False if it does not wait."""
        most = self.prefixes.most_blocks(sequence)
        if most < self._min_blocks or must_compute(sequence) or not self._guard.is_open or self._loader.hangs:
            return False
        keys = self.prefixes.keys(sequence, most)
        first = self._count_local(keys)
        missing = keys[first:]
        if len(missing) < self._min_blocks:
            return False
        limit = self.rates.lookup_limit(len(missing) * self._block_size)
        if limit is None:
            return False
        ticket = Ticket(sequence, first, missing, time.monotonic() + limit)
        if not self._loader.find(ticket):
            return False
        self._tickets[sequence] = ticket
        self._queries += len(missing) * self._block_size
        return True

    def ready(self, num_running: int) -> Iterator[Sequence]:
        """Yield the sequences that need not wait any more; what was loaded for them is in the prefix cache."""
        for ticket in list(self._tickets.values()):
            if not self._waits(ticket, num_running):
                self._close(ticket)
                yield ticket.sequence

    def wait(self) -> None:
        """Wait for a moment until a sequence may be ready; for steps with nothing else to do."""
        if self._tickets:
            self._loader.changed.wait(IDLE_WAIT_S)
            self._loader.changed.clear()

    def forget(self, sequence: Sequence, *, failed: bool) -> None:
        """Note that a sequence has ended. What failed ones computed is removed from the store."""
        if (ticket := self._tickets.get(sequence)) is not None:
            self._close(ticket)
        if failed and sequence in self._saved:
            self._saver.retract(list(sequence.block_keys))

    def save(self, sequence: Sequence) -> None:
        """Queue the blocks of a sequence that are full now, unless it is short."""
        full = sequence.num_computed_tokens // self._block_size
        if full < self._min_blocks:
            return
        saved = self._saved.get(sequence, 0)
        if full > saved:
            pays = saved > 0 or self.rates.saving_pays()
            self._saved[sequence] = full if pays else NEVER
            if pays:
                self._saver.save(self.prefixes.keys(sequence, full)[saved:])

    def _count_local(self, keys: list[bytes]) -> int:
        """Return how many of the first keys the cache has."""
        return next((number for number, key in enumerate(keys) if self._pool.find(key) is None), len(keys))

    def _waits(self, ticket: Ticket, num_running: int) -> bool:
        """Return whether a sequence must still wait; begin to load its blocks once they were found."""
        if ticket.blocks:
            return not ticket.ended and time.monotonic() < ticket.deadline
        if ticket.found is None:
            return time.monotonic() < ticket.deadline
        return bool(ticket.found) and self._begin(ticket, num_running)

    def _begin(self, ticket: Ticket, num_running: int) -> bool:
        """Reserve blocks and load them. Return False if that does not pay, or there are too few free blocks."""
        assert ticket.found is not None
        size = self._block_size
        others = sum(len(other.blocks) - other.loaded for other in self._tickets.values())
        limit = self.rates.load_limit(ticket.found * size, others * size)
        if limit is None:
            if self.rates.tries():
                self._loader.measure(ticket.keys[: ticket.found])
            return False
        before = [self._pool.find(key) for key in ticket.sequence.block_keys[: ticket.first]]
        if None in before:  # it has been given away since
            return False
        for block in before:
            assert block is not None
            self._pool.share(block)
            ticket.before.append(block)
        room = self._pool.num_free - FREE_BLOCKS * (num_running + 1)
        ticket.blocks = [self._pool.allocate() for _ in range(min(ticket.found, room))]
        ticket.deadline = time.monotonic() + limit
        return bool(ticket.blocks) and self._loader.load(ticket)

    def _close(self, ticket: Ticket) -> None:
        """Release a ticket's blocks; those that are complete can be found from now on."""
        ticket.close()
        del self._tickets[ticket.sequence]
        for block, key in zip(ticket.blocks[: ticket.loaded], ticket.keys, strict=False):
            self._pool.register(block, key)
        for block in reversed((*ticket.before, *ticket.blocks)):
            self._pool.release(block)
        self._hits += ticket.loaded * self._block_size
        if ticket.loaded:
            self._saver.note_present(ticket.keys[: ticket.loaded])
