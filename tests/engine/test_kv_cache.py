"""Random operations on sequences and blocks: nothing leaks, is given out twice, or is written while shared."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shared.protocol import SamplingParams
from workers.engine.detokenizer import TextStream
from workers.engine.kv_cache import BlockPool, KVCacheManager
from workers.engine.sequence import Sequence

BLOCK_SIZE = 4


def make_sequence(num_tokens: int) -> Sequence:
    params = SamplingParams()
    return Sequence("r", 0, 0, params, [0] * num_tokens, num_tokens, 99, frozenset(), TextStream(lambda ids: ""))


class KVCacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12)
        self.cache = KVCacheManager(self.pool, BLOCK_SIZE)
        self.live: list[Sequence] = []

    @rule(tokens=st.integers(1, 30))
    def start(self, tokens: int) -> None:
        sequence = make_sequence(tokens)
        before = self.pool.num_free
        if self.cache.allocate(sequence, tokens):
            self.live.append(sequence)
            sequence.num_computed_tokens = tokens
        else:
            assert self.cache.blocks_for(tokens) > before
            assert self.pool.num_free == before

    @precondition(lambda self: self.live)
    @rule(data=st.data(), more=st.integers(1, 6))
    def grow(self, data: st.DataObject, more: int) -> None:
        """What is written afterwards is in blocks of this sequence alone, which is why some are copied."""
        sequence = data.draw(st.sampled_from(self.live))
        first, table = sequence.num_computed_tokens // BLOCK_SIZE, list(sequence.block_table)
        if not self.cache.allocate(sequence, sequence.num_computed_tokens + more):
            assert sequence.block_table == table
            assert self.cache.take_copies() == []
            return
        sequence.num_computed_tokens += more
        assert all(self.pool.references(block) == 1 for block in sequence.block_table[first:])
        moved = [(old, new) for old, new in zip(table, sequence.block_table, strict=False) if old != new]
        assert self.cache.take_copies() == moved

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from(self.live))
        child = make_sequence(parent.num_computed_tokens)
        free = self.pool.num_free
        self.cache.fork(parent, child, data.draw(st.integers(0, parent.num_computed_tokens)))
        assert self.pool.num_free == free
        self.live.append(child)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        self.live.remove(sequence)
        self.cache.free(sequence)

    @invariant()
    def every_block_is_free_or_held_by_as_many_as_counted(self) -> None:
        held = [block for sequence in self.live for block in sequence.block_table]
        assert all(self.pool.references(block) == held.count(block) for block in range(self.pool.num_blocks))
        assert self.pool.num_free == self.pool.num_blocks - len(set(held))

    def teardown(self) -> None:
        for sequence in self.live:
            self.cache.free(sequence)
        assert self.pool.num_free == self.pool.num_blocks


TestKVCache = KVCacheMachine.TestCase
