"""Random operations on sequences and blocks: no block leaks, is allocated twice, is written while shared, or is
found under a wrong key.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shared.protocol import SamplingParams
from workers.engine.cache.block_pool import BlockPool
from workers.engine.cache.kv_cache import KVCacheManager
from workers.engine.cache.prefix_cache import PrefixCache
from workers.engine.sequence import Sequence
from workers.engine.text.detokenizer import TextStream

BLOCK_SIZE = 4


def make_sequence(num_tokens: int, token: int = 0, salt: bytes = b"") -> Sequence:
    params, tokens = SamplingParams(), [token] * num_tokens
    text = TextStream(lambda ids: "")
    return Sequence("r", 0, 0, params, tokens, num_tokens, 99, frozenset(), text, prefix_salt=salt)


class KVCacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12)
        self.prefixes = PrefixCache(self.pool, BLOCK_SIZE)
        self.cache = KVCacheManager(self.pool, BLOCK_SIZE, self.prefixes)
        self.live: list[Sequence] = []
        self.contents: dict[int, list[object]] = {}  # of each block: salt and tokens up to each slot

    def write(self, sequence: Sequence, count: int) -> None:
        for old, new in self.cache.take_copies():
            self.contents[new] = list(self.contents[old])
        start = sequence.num_computed_tokens
        for position in range(start, start + count):
            slots = self.contents.setdefault(sequence.block_table[position // BLOCK_SIZE], [None] * BLOCK_SIZE)
            slots[position % BLOCK_SIZE] = (sequence.prefix_salt, *sequence.tokens[: position + 1])
        self.cache.advance(sequence, count)

    @rule(tokens=st.integers(1, 30), token=st.integers(0, 1), salt=st.sampled_from([b"", b"x"]))
    def start(self, tokens: int, token: int, salt: bytes) -> None:
        """Found blocks hold what this sequence would compute, and never all of it."""
        sequence = make_sequence(tokens, token, salt)
        before = self.pool.num_free
        found = self.prefixes.reuse(sequence)
        assert sequence.num_computed_tokens == found * BLOCK_SIZE < tokens
        if self.cache.allocate(sequence, tokens):
            self.live.append(sequence)
            self.write(sequence, sequence.num_uncomputed_tokens)
        else:
            self.prefixes.undo_reuse(sequence, found)
            assert not sequence.block_table
            assert self.pool.num_free == before

    @precondition(lambda self: self.live)
    @rule(data=st.data(), more=st.integers(1, 6), token=st.integers(0, 1))
    def grow(self, data: st.DataObject, more: int, token: int) -> None:
        """Blocks written afterwards belong to this sequence alone, so shared ones are copied."""
        sequence = data.draw(st.sampled_from(self.live))
        first, table = sequence.num_computed_tokens // BLOCK_SIZE, sequence.block_table[:]
        if not self.cache.allocate(sequence, sequence.num_computed_tokens + more):
            assert sequence.block_table == table
            assert self.cache.take_copies() == []
            return
        assert not any(self.pool.is_read_only(block) for block in sequence.block_table[first:])
        sequence.tokens = sequence.tokens[: sequence.num_computed_tokens] + [token] * more
        self.write(sequence, more)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def give_way(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        before = self.pool.num_free
        expected = before + self.cache.count_freeable([sequence])
        while sequence.block_table:
            self.cache.release_last(sequence)
            assert sequence.num_computed_tokens <= len(sequence.block_table) * BLOCK_SIZE
        assert self.pool.num_free == expected
        self.live.remove(sequence)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from(self.live))
        shared = data.draw(st.integers(0, parent.num_computed_tokens))
        child = make_sequence(shared + 1, 0, parent.prefix_salt)
        child.tokens[:shared] = parent.tokens[:shared]
        free = self.pool.num_free
        self.cache.fork(parent, child, shared)
        assert self.pool.num_free == free
        self.live.append(child)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        self.live.remove(sequence)
        self.cache.free(sequence)

    @invariant()
    def each_sequence_has_its_own_contents(self) -> None:
        for sequence in self.live:
            for position in range(sequence.num_computed_tokens):
                slots = self.contents[sequence.block_table[position // BLOCK_SIZE]]
                assert slots[position % BLOCK_SIZE] == (sequence.prefix_salt, *sequence.tokens[: position + 1])

    @invariant()
    def every_block_is_free_or_held_by_as_many_as_counted(self) -> None:
        held = [block for sequence in self.live for block in sequence.block_table]
        assert all(self.pool.num_references(block) == held.count(block) for block in range(self.pool.num_blocks))
        assert self.pool.num_free == self.pool.num_blocks - len(set(held))

    def teardown(self) -> None:
        for sequence in self.live:
            self.cache.free(sequence)
        assert self.pool.num_free == self.pool.num_blocks


TestKVCache = KVCacheMachine.TestCase


def test_findable_block_is_copied_before_its_last_holder_writes() -> None:
    """Given a choice resumed past the end of its prompt's block, a sibling that outlives it copies the block."""
    pool = BlockPool(4)
    cache = KVCacheManager(pool, BLOCK_SIZE, PrefixCache(pool, BLOCK_SIZE))
    parent, child = make_sequence(8), make_sequence(6)
    assert cache.allocate(parent, 8)
    cache.advance(parent, 8)
    cache.fork(parent, child, 5)
    found = parent.block_table[1]
    cache.free(parent)
    assert cache.allocate(child, 6)
    assert cache.take_copies() == [(found, child.block_table[1])]


def test_a_sequence_writes_only_to_blocks_that_are_its_own() -> None:
    """Given a block with room, it is copied once a choice shares it, and allocated again after a preemption."""
    cache = KVCacheManager(BlockPool(4), BLOCK_SIZE)
    parent = make_sequence(6)
    assert cache.allocate(parent, 6)
    cache.advance(parent, 6)
    cache.fork(parent, make_sequence(6), 5)
    shared = parent.block_table[1]
    assert cache.allocate(parent, 7)
    assert cache.take_copies() == [(shared, parent.block_table[1])]
    cache.release_last(parent)
    assert cache.allocate(parent, 7)
    assert len(parent.block_table) == 2
