"""Rates decide by expected times; a block that is given away is not saved; threads end with their owner."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from tests.support.kv_tiers import until
from workers.engine.cache.block_pool import BlockPool
from workers.engine.tiers import saver as saver_module
from workers.engine.tiers.background import Background
from workers.engine.tiers.block_memory import BlockMemory
from workers.engine.tiers.codec import BlockCodec
from workers.engine.tiers.memory_store import MemoryStore
from workers.engine.tiers.rates import LOOKUP_SHARE, MAX_LOOKUP_S, TRY_EVERY, MeasuredRates
from workers.engine.tiers.saver import Saver
from workers.engine.tiers.store import StoreGuard

KEY, OTHER_KEY = b"k" * 32, b"o" * 32


def test_a_sequence_waits_only_for_a_share_of_its_computation() -> None:
    rates = MeasuredRates(token_bytes=1000)
    assert rates.lookup_limit(256) is not None, "nothing is measured yet"
    rates.note_step(100, 0.1)  # 1 ms a token
    assert rates.lookup_limit(1000) == pytest.approx(LOOKUP_SHARE)
    assert rates.lookup_limit(10**9) == MAX_LOOKUP_S
    rates.note_lookup(0.5)
    answers = [rates.lookup_limit(1000) for _ in range(2 * TRY_EVERY)]
    assert [number for number, limit in enumerate(answers, 1) if limit is not None] == [TRY_EVERY, 2 * TRY_EVERY]
    for _ in range(40):
        rates.note_lookup(0.001)
    assert rates.lookup_limit(1000) is not None, "it has become faster"


def test_loading_must_be_faster_than_computing() -> None:
    rates = MeasuredRates(token_bytes=1000)
    rates.note_step(100, 0.1)
    rates.note_load(100, 0.01)  # 0.1 ms a token
    limit = rates.load_limit(1000, before=0)
    assert limit is not None
    assert 0.1 < limit <= 1.0
    assert rates.saving_pays()
    assert rates.load_limit(1000, before=100_000) is None, "others wait in front of it"
    for _ in range(40):
        rates.note_load(100, 0.09)
    assert rates.load_limit(1000, before=0) is None
    assert sum(rates.saving_pays() for _ in range(TRY_EVERY)) == 1


def make_saver(blocks: int = 4) -> tuple[BlockPool, torch.Tensor, MemoryStore, Saver, BlockCodec]:
    cache = torch.arange(2 * 2 * blocks * 3 * 4 * 5, dtype=torch.float32).view(2, 2, blocks, 3, 4, 5)
    pool, store, codec = BlockPool(blocks), MemoryStore(2**20), BlockCodec((2, 2, 3, 4, 5), torch.float32)
    return pool, cache, store, Saver(pool, BlockMemory(cache), codec, StoreGuard(store)), codec


def test_a_saved_block_has_the_bytes_of_the_cache() -> None:
    pool, cache, store, saver, codec = make_saver()
    block = pool.allocate()
    pool.register(block, KEY)
    saver.save([KEY, OTHER_KEY])
    until(lambda: not saver.pending)
    [value, missing] = store.get([KEY, OTHER_KEY])
    assert missing is None
    assert value is not None
    content = codec.open(KEY, value)
    assert content is not None
    assert bytes(content) == cache[:, :, block].numpy().tobytes()
    assert (saver.drops, saver.saved_bytes) == (1, codec.value_bytes)
    target = torch.zeros_like(cache)
    BlockMemory(target).write(2, content)
    assert torch.equal(target[:, :, 2], cache[:, :, block])


def test_bfloat16_is_copied_as_it_is() -> None:
    cache = torch.randn(2, 2, 3, 1, 4, 8).to(torch.bfloat16)
    frame = np.zeros(2 * 2 * 4 * 8 * 2, np.uint8)
    BlockMemory(cache).read(1, frame)
    target = torch.zeros_like(cache)
    BlockMemory(target).write(2, frame.data)
    assert torch.equal(target[:, :, 2], cache[:, :, 1])


def test_a_block_given_away_while_it_is_copied_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a block that is computed again under the same key meanwhile, the copy may mix both, and is dropped."""
    pool, _, store, saver, _ = make_saver(blocks=1)
    block = pool.allocate()
    pool.register(block, KEY)
    read = saver._memory.read

    def reading(number: int, target: np.ndarray) -> None:
        read(number, target)
        pool.release(block)
        pool.allocate()
        pool.register(block, KEY)

    monkeypatch.setattr(saver._memory, "read", reading)
    saver.save([KEY])
    until(lambda: not saver.pending)
    assert store.get([KEY]) == [None]
    assert saver.drops == 1


def test_blocks_beyond_the_bound_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver_module, "MAX_PENDING", 3)
    saver = make_saver()[3]
    hold = threading.Event()
    saver._thread.submit(hold.wait)  # type: ignore[arg-type]
    for number in range(5):
        saver.save([bytes([number]) * 32])
    assert (saver.pending, saver.drops) == (3, 2)
    hold.set()
    until(lambda: not saver.pending)
    assert saver.drops == 5, "none of them was in the cache"


def test_a_thread_ends_with_its_owner() -> None:
    background = Background("kv-tier-test", 2)
    done = threading.Event()
    background.submit(_raise)
    assert background.submit(done.set), "an error does not end it"
    assert done.wait(60)
    [thread] = [each for each in threading.enumerate() if each.name == "kv-tier-test"]
    del background
    thread.join(60)
    assert not thread.is_alive()


def _raise() -> None:
    raise ValueError("expected")
