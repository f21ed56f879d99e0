"""Saving of computed blocks in the store, beside the engine's thread."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence

from workers.engine.cache.block_pool import BlockPool
from workers.engine.tiers.background import Background
from workers.engine.tiers.block_memory import BlockMemory
from workers.engine.tiers.codec import CONTENT_AT, BlockCodec
from workers.engine.tiers.store import StoreGuard

MAX_PENDING, MAX_JOBS = 4096, 8192  # blocks that wait, by their keys; calls, each for one or several blocks
GROUP = 32  # blocks that are looked up in one call
MAX_KNOWN, KNOWN_S = 16_384, 60.0  # blocks that are known to be in the store, and for how long

Keys = Sequence[bytes]


class Saver:
    """Writes blocks that are not in the store yet.

    A block that waits is not held: it is read from the cache if it can be found by its key, and dropped if it has
    been given away. The engine's thread only queues keys.

    Attributes:
        saved_bytes, drops: see `TierStats`.
    """

    def __init__(self, pool: BlockPool, memory: BlockMemory, codec: BlockCodec, guard: StoreGuard) -> None:
        self._pool = pool
        self._memory = memory
        self._codec = codec
        self._guard = guard
        self._thread = Background("kv-tier-save", MAX_JOBS)
        self._queued = self._done = 0  # each is written by one thread
        self._refused = self._lost = 0
        self._known: OrderedDict[bytes, float] = OrderedDict()  # until when, in order of time
        self.saved_bytes = 0

    @property
    def pending(self) -> int:
        return self._queued - self._done

    @property
    def drops(self) -> int:
        return self._refused + self._lost

    def save(self, keys: Keys) -> None:
        """Queue blocks, as far as there is room."""
        room = max(0, MAX_PENDING - self.pending)
        keys, refused = keys[:room], keys[room:]
        self._refused += len(refused)
        if keys and self._thread.submit(lambda: self._save(keys)):
            self._queued += len(keys)
        else:
            self._refused += len(keys)

    def retract(self, keys: Keys) -> None:
        """Remove blocks that may be wrong."""
        self._thread.submit(lambda: self._drop(keys))

    def note_present(self, keys: Keys) -> None:
        """Note that blocks were just loaded."""
        self._thread.submit(lambda: self._know(keys))

    def _save(self, keys: Keys) -> None:
        for start in range(0, len(keys), GROUP):
            group = keys[start : start + GROUP]
            try:
                self._save_group([key for key in group if self._known.get(key, 0.0) < time.monotonic()])
            finally:
                self._done += len(group)

    def _save_group(self, keys: Keys) -> None:
        if not keys:
            return
        there = self._guard.call(self._guard.store.keep, keys)
        if there is None:
            self._lost += len(keys)
            return
        known = [key for key, has in zip(keys, there, strict=True) if has or self._write(key)]
        self._know(known)

    def _write(self, key: bytes) -> bool:
        """Copy a block, and write it if it was not given away meanwhile. Return whether it was written."""
        block = self._pool.find(key)
        if block is not None:
            uses, frame = self._pool.num_uses(block), self._codec.frame()
            self._memory.read(block, frame[CONTENT_AT:])
            if self._pool.find(key) == block and self._pool.num_uses(block) == uses:
                value = self._codec.seal(key, frame)
                if self._guard.call(self._guard.store.put, key, value):
                    self.saved_bytes += len(value)
                    return True
        self._lost += 1
        return False

    def _drop(self, keys: Keys) -> None:
        for key in keys:
            self._known.pop(key, None)
            self._guard.call(self._guard.store.drop, key)

    def _know(self, keys: Keys) -> None:
        until = time.monotonic() + KNOWN_S
        for key in keys:
            self._known[key] = until
            self._known.move_to_end(key)
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
