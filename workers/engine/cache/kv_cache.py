"""Allocation of KV blocks to sequences.

The manager only counts blocks. The copies that shared blocks require are collected for the model runner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from workers.engine.cache.block_pool import BlockPool
from workers.engine.cache.prefix_cache import PrefixCache
from workers.engine.sequence import Sequence


class KVCacheManager:
    """Manager of the block tables of all sequences.

    Args:
        prefixes: prefix cache; None disables the reuse of computed prefixes.
    """

    def __init__(self, pool: BlockPool, block_size: int, prefixes: PrefixCache | None = None) -> None:
        self.pool = pool
        self.block_size = block_size
        self.prefixes = prefixes
        self._copies: list[tuple[int, int]] = []

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def blocks_needed(self, sequence: Sequence, num_tokens: int) -> int:
        """Return how many free blocks `allocate` would take."""
        table = sequence.block_table
        return max(0, self.blocks_for(num_tokens) - len(table)) + self._writes_shared(sequence)

    def allocate(self, sequence: Sequence, num_tokens: int) -> bool:
        """Allocate blocks for the sequence's first `num_tokens`; those after the computed ones may be written.

        Return False, and change nothing, if the pool has too few blocks.
        """
        if num_tokens <= sequence.num_writable_tokens:  # of nearly every token
            return True
        table = sequence.block_table
        writes_shared = self._writes_shared(sequence)
        if self.blocks_needed(sequence, num_tokens) > self.pool.num_free:
            return False
        if writes_shared:
            at, block = sequence.num_computed_tokens // self.block_size, self.pool.allocate()
            self._copies.append((table[at], block))
            self.pool.release(table[at])
            table[at] = block
        table.extend(self.pool.allocate() for _ in range(self.blocks_for(num_tokens) - len(table)))
        sequence.num_writable_tokens = len(table) * self.block_size
        return True

    def extend(self, sequence: Sequence, num_tokens: int, more: int) -> int:
        """Allocate blocks for up to `more` tokens after the first `num_tokens`, which have theirs.

        Only blocks that are free are taken. Return for how many tokens there is room.
        """
        table = sequence.block_table
        blocks = self.blocks_for(num_tokens + more) - len(table)
        table.extend(self.pool.allocate() for _ in range(min(blocks, self.pool.num_free)))
        return min(more, len(table) * self.block_size - num_tokens)

    def trim(self, sequence: Sequence) -> None:
        """Release the blocks after those of the sequence's tokens."""
        sequence.num_writable_tokens = 0
        while len(sequence.block_table) > self.blocks_for(sequence.num_tokens):
            self.pool.release(sequence.block_table.pop())

    def _writes_shared(self, sequence: Sequence) -> bool:
        """Return whether the next token's block is read-only and must be copied first.

        Only the block where a forked prompt ends can be one.
        """
        at = sequence.num_computed_tokens // self.block_size
        return at < len(sequence.block_table) and self.pool.is_read_only(sequence.block_table[at])

    def count_freeable(self, sequences: Iterable[Sequence]) -> int:
        """Return how many blocks would become free if these sequences released all of theirs."""
        held = Counter(block for sequence in sequences for block in sequence.block_table)
        return sum(count == self.pool.num_references(block) for block, count in held.items())

    def release_last(self, sequence: Sequence) -> None:
        """Release the last block of a sequence, and so its tokens computed there."""
        self.pool.release(sequence.block_table.pop())
        sequence.num_writable_tokens = 0
        room = len(sequence.block_table) * self.block_size
        sequence.num_computed_tokens = min(sequence.num_computed_tokens, room)

    def advance(self, sequence: Sequence, num_new_tokens: int) -> None:
        """Count tokens whose keys and values are now in the cache, and register the blocks they fill."""
        computed = sequence.num_computed_tokens + num_new_tokens
        sequence.num_computed_tokens = computed
        if computed % self.block_size < num_new_tokens and self.prefixes is not None:  # a block became full
            self.prefixes.register(sequence, (computed - num_new_tokens) // self.block_size)

    def invalidate(self, sequence: Sequence) -> None:
        """Remove the keys of a failed sequence's blocks, whose contents may be wrong."""
        for block in sequence.block_table:
            self.pool.unregister(block)

    def fork(self, parent: Sequence, child: Sequence, num_tokens: int) -> None:
        """Share the parent's first `num_tokens`, which are computed, with `child`, without copying."""
        parent.num_writable_tokens = 0
        for block in parent.block_table[: self.blocks_for(num_tokens)]:
            self.pool.share(block)
            child.block_table.append(block)
        child.num_computed_tokens = num_tokens

    def free(self, sequence: Sequence) -> None:
        for block in reversed(sequence.block_table):
            self.pool.release(block)
        del sequence.block_table[:]
        sequence.num_writable_tokens = 0
        sequence.num_computed_tokens = 0

    def take_copies(self) -> list[tuple[int, int]]:
        """Return and clear the (from, to) block copies to make, in this order, before the step writes."""
        copies, self._copies = self._copies, []
        return copies
