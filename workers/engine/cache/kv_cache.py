"""Who owns which KV block: a pool with reference counts, and the block tables of sequences.

It counts blocks and knows nothing of their contents; copies that sharing makes necessary are handed to the
model runner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from workers.engine.cache.block_pool import BlockPool
from workers.engine.cache.prefix_cache import PrefixCache
from workers.engine.sequence import Sequence


class KVCacheManager:
    """Gives sequences the blocks that their tokens need.

    Args:
        prefixes: finds the computed beginning of a sequence again; None computes all anew.
    """

    def __init__(self, pool: BlockPool, block_size: int, prefixes: PrefixCache | None = None) -> None:
        self.pool = pool
        self.block_size = block_size
        self.prefixes = prefixes
        self._copies: list[tuple[int, int]] = []

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def missing(self, sequence: Sequence, num_tokens: int) -> int:
        """How many free blocks `allocate` would take."""
        table = sequence.block_table
        return max(0, self.blocks_for(num_tokens) - len(table)) + self._writes_shared(sequence)

    def allocate(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make room for the sequence's first `num_tokens`, of which those after the computed ones will be
        written.

        Returns False, and changes nothing, where the pool has too few blocks.
        """
        if self.missing(sequence, num_tokens) > self.pool.num_free:
            return False
        table = sequence.block_table
        if self._writes_shared(sequence):
            at, block = sequence.num_computed_tokens // self.block_size, self.pool.allocate()
            self._copies.append((table[at], block))
            self.pool.release(table[at])
            table[at] = block
        table.extend(self.pool.allocate() for _ in range(self.blocks_for(num_tokens) - len(table)))
        return True

    def _writes_shared(self, sequence: Sequence) -> bool:
        """Whether the next token's block must be copied first, since others rely on its contents.

        Only the block where a forked prompt ends can be one of these.
        """
        at = sequence.num_computed_tokens // self.block_size
        return at < len(sequence.block_table) and self.pool.is_relied_on(sequence.block_table[at])

    def freeable(self, sequences: Iterable[Sequence]) -> int:
        """How many blocks would be free if these gave up all of theirs."""
        held = Counter(block for sequence in sequences for block in sequence.block_table)
        return sum(count == self.pool.references(block) for block, count in held.items())

    def release_last(self, sequence: Sequence) -> None:
        """Give up the last block, and with it what was computed there."""
        self.pool.release(sequence.block_table.pop())
        room = len(sequence.block_table) * self.block_size
        sequence.num_computed_tokens = min(sequence.num_computed_tokens, room)

    def advance(self, sequence: Sequence, num_new_tokens: int) -> None:
        """Count tokens whose keys and values are in the cache now."""
        first = sequence.num_computed_tokens // self.block_size
        sequence.num_computed_tokens += num_new_tokens
        if self.prefixes is not None:
            self.prefixes.keep(sequence, first)

    def disown(self, sequence: Sequence) -> None:
        """Let nobody find what this sequence computed: it is wrong."""
        for block in sequence.block_table:
            self.pool.unname(block)

    def fork(self, parent: Sequence, child: Sequence, num_tokens: int) -> None:
        """Give `child` the parent's first `num_tokens`, computed, without copying."""
        for block in parent.block_table[: self.blocks_for(num_tokens)]:
            self.pool.share(block)
            child.block_table.append(block)
        child.num_computed_tokens = num_tokens

    def free(self, sequence: Sequence) -> None:
        for block in reversed(sequence.block_table):
            self.pool.release(block)
        sequence.block_table.clear()
        sequence.num_computed_tokens = 0

    def take_copies(self) -> list[tuple[int, int]]:
        """(from, to) blocks to copy, in this order, before anything is written."""
        copies, self._copies = self._copies, []
        return copies
