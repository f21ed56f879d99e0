"""Prefix cache: it finds computed full blocks by a keyed hash of all tokens up to their end.

The first block's key starts from the request's salt: tenants share no blocks, and cannot infer the prompts of
others from the time to the first token. With a KV tier, the same keys name blocks there.
"""

from __future__ import annotations

import secrets
from array import array
from hashlib import blake2b

from workers.engine.cache.block_pool import BlockPool
from workers.engine.sequence import Sequence

KEY_BYTES = 32


class PrefixCache:
    """Prefix cache over a block pool.

    Args:
        secret: of the keyed hash, equal in workers that share blocks; None draws one that no other process has.

    Attributes:
        queries: tokens that sequences had yet to compute when they started or resumed.
        hits: how many of them were found.
    """

    def __init__(self, pool: BlockPool, block_size: int, secret: bytes | None = None) -> None:
        self._pool = pool
        self._block_size = block_size
        self._secret = secret or secrets.token_bytes(32)
        self.queries = 0
        self.hits = 0

    def reuse(self, sequence: Sequence) -> int:
        """Append the blocks found beyond a sequence's own to its block table. Return how many were found.

        At least the last token is left to compute, since its logits are not kept.
        """
        table = sequence.block_table
        self.queries += sequence.num_uncomputed_tokens
        if must_compute(sequence) or sequence.num_computed_tokens < len(table) * self._block_size:
            return 0
        found = 0
        for key in self.keys(sequence, self.most_blocks(sequence))[len(table) :]:
            block = self._pool.find(key)
            if block is None:
                break
            self._pool.share(block)
            table.append(block)
            found += 1
        sequence.num_computed_tokens += found * self._block_size
        self.hits += found * self._block_size
        return found

    def most_blocks(self, sequence: Sequence) -> int:
        """Return how many blocks a sequence may reuse; its last token is not in them."""
        return (sequence.num_tokens - 1) // self._block_size

    def undo_reuse(self, sequence: Sequence, found: int) -> None:
        """Revert a call of `reuse` that found so many blocks, because the sequence must wait."""
        for _ in range(found):
            self._pool.release(sequence.block_table.pop())
        sequence.num_computed_tokens -= found * self._block_size
        self.hits -= found * self._block_size
        self.queries -= sequence.num_uncomputed_tokens

    def register(self, sequence: Sequence, first: int) -> None:
        """Make the sequence's full blocks findable, from number `first` on."""
        end = sequence.num_computed_tokens // self._block_size
        if first < end:
            for block, key in zip(sequence.block_table[first:end], self.keys(sequence, end)[first:], strict=True):
                self._pool.register(block, key)

    def keys(self, sequence: Sequence, count: int) -> list[bytes]:
        """Return the keys of the first `count` blocks; each is computed once."""
        keys, size = sequence.block_keys, self._block_size
        while len(keys) < count:
            before = keys[-1] if keys else self._digest(sequence.prefix_salt, b"salt")
            tokens = array("q", sequence.tokens[len(keys) * size : (len(keys) + 1) * size])
            keys.append(self._digest(before + tokens.tobytes(), b"block"))
        return keys[:count]

    def _digest(self, data: bytes, person: bytes) -> bytes:
        return blake2b(data, key=self._secret, digest_size=KEY_BYTES, person=person).digest()


def must_compute(sequence: Sequence) -> bool:
    """Return whether a sequence cannot reuse blocks: scoring its prompt needs logits, which are not kept."""
    return sequence.echo is not None and sequence.echo.scored
