"""Finds the computed beginning of a sequence again: full blocks by a keyed hash of all tokens up to their end.

The first block's key starts from the request's salt: tenants share nothing, and cannot learn from the time of a
first token what others asked. It knows nothing of what blocks hold, or when they are given out anew.
"""

from __future__ import annotations

import secrets
from array import array
from hashlib import blake2b

from workers.engine.cache.block_pool import BlockPool
from workers.engine.sequence import Sequence

KEY_BYTES = 16


class PrefixCache:
    """Keys of sequences' blocks, and how often they were of use.

    Attributes:
        queries: tokens that sequences had to compute when they began to run, or to run again.
        hits: how many of them were found.
    """

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size
        self._secret = secrets.token_bytes(32)  # keys never leave the process
        self.queries = 0
        self.hits = 0

    def reuse(self, sequence: Sequence) -> int:
        """Give a sequence that is about to run what is found beyond its own blocks; how many blocks that was.

        Its last token is left to compute at least, since its logits are not kept.
        """
        table = sequence.block_table
        self.queries += sequence.num_uncomputed_tokens
        scored = sequence.echo is not None and sequence.echo.scored  # what is not computed tells nothing
        if scored or sequence.num_computed_tokens < len(table) * self._block_size:
            return 0
        found = 0
        for key in self._keys(sequence, (sequence.num_tokens - 1) // self._block_size)[len(table) :]:
            block = self._pool.find(key)
            if block is None:
                break
            self._pool.share(block)
            table.append(block)
            found += 1
        sequence.num_computed_tokens += found * self._block_size
        self.hits += found * self._block_size
        return found

    def undo(self, sequence: Sequence, found: int) -> None:
        """As if `reuse` had not been called; the sequence must wait."""
        for _ in range(found):
            self._pool.release(sequence.block_table.pop())
        sequence.num_computed_tokens -= found * self._block_size
        self.hits -= found * self._block_size
        self.queries -= sequence.num_uncomputed_tokens

    def keep(self, sequence: Sequence, first: int) -> None:
        """From now on the sequence's blocks can be found, from its `first` to its last full one."""
        end = sequence.num_computed_tokens // self._block_size
        if first < end:
            for block, key in zip(sequence.block_table[first:end], self._keys(sequence, end)[first:], strict=True):
                self._pool.name(block, key)

    def _keys(self, sequence: Sequence, count: int) -> list[bytes]:
        """Of the first `count` blocks, each made once."""
        keys, size = sequence.block_keys, self._block_size
        while len(keys) < count:
            before = keys[-1] if keys else self._digest(sequence.prefix_salt, b"salt")
            tokens = array("q", sequence.tokens[len(keys) * size : (len(keys) + 1) * size])
            keys.append(self._digest(before + tokens.tobytes(), b"block"))
        return keys[:count]

    def _digest(self, data: bytes, person: bytes) -> bytes:
        return blake2b(data, key=self._secret, digest_size=KEY_BYTES, person=person).digest()
