"""Blocks that another worker has computed are loaded, with the same bits; what a tier cannot give is computed."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from shared.errors import ConfigError
from shared.protocol import SamplingParams
from tests.support.checkpoints import edit_config
from tests.support.drafters import Oracle, speculate
from tests.support.engine_driver import Answers, drain, load, step
from tests.support.kv_tiers import PROMPT, SAMPLED, Patient, load_tiered, loaded, settle, tier_stats, until
from workers.engine.engine import Engine
from workers.engine.interface import EngineRequest
from workers.engine.scheduling.scheduled_batch import ScheduledBatch
from workers.engine.scheduling.scheduler import Scheduler
from workers.engine.tiers.memory_store import MemoryStore
from workers.engine.tiers.options import TierOptions
from workers.engine.tiers.store import StoreFailed, StoreGuard, Value

OTHER = tuple(random.Random(4).choices(range(256), k=30))
MEMORY = TierOptions("memory", 2**26, min_tokens=8)
Rows = dict[tuple[str, int, int], Tensor]


def request(prompt: tuple[int, ...] = PROMPT, n: int = 1, name: str = "r", **more: Any) -> EngineRequest:
    return EngineRequest(name, prompt, msgspec.structs.replace(SAMPLED, n=n), **more)


def answer(engine: Engine, *requests: EngineRequest) -> Answers:
    for each in requests or (request(),):
        engine.add(each)
    return drain(engine)


def record(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Rows:
    """Record the logits from which tokens are drawn, by request, choice and length."""
    rows: Rows = {}
    compute = engine._runner.run

    def recording(batch: ScheduledBatch, interrupted: object) -> Tensor | None:
        found = compute(batch, None)
        assert found is not None
        sampled = [item.sequence for item in batch.items if item.samples]
        for sequence, row in zip(sampled, found, strict=False):
            rows[sequence.job_id, sequence.choice, sequence.num_tokens] = row.clone()
        return found

    monkeypatch.setattr(engine._runner, "run", recording)
    return rows


def fill(folder: Path, tier: TierOptions, *requests: EngineRequest, **settings: Any) -> Answers:
    """Have a worker compute requests and save their blocks."""
    engine = load_tiered(folder, tier, **settings)
    found = answer(engine, *requests)
    settle(engine)
    assert tier_stats(engine).saved_bytes
    return found


@pytest.fixture(scope="module")
def plain(llama: Path) -> Engine:
    """An engine without a tier, whose answers are expected."""
    return load(llama, block_size=4, prefix_caching=False)


@pytest.fixture(scope="module")
def filled(llama: Path) -> MemoryStore:
    """A store in memory that has the blocks of `request()` with the salt b"a"."""
    engine = load_tiered(llama, MEMORY)
    answer(engine, request(prefix_salt=b"a"))
    settle(engine)
    return store_of(engine)


def store_of(engine: Engine) -> MemoryStore:
    assert engine.tier is not None
    store = engine.tier._guard.store
    assert isinstance(store, MemoryStore)
    return store


def use(engine: Engine, store: MemoryStore) -> None:
    """Give an engine the store of another one."""
    assert engine.tier is not None
    engine.tier._guard.store = store


@pytest.mark.parametrize(
    ("kind", "settings", "n"),
    [
        ("redis", {"max_num_batched_tokens": 7}, 1),
        ("disk", {"max_num_batched_tokens": 16, "num_kv_blocks": 24}, 3),
        pytest.param("disk", {"max_num_batched_tokens": 7}, 1, marks=pytest.mark.slow),
        pytest.param("redis", {"max_num_batched_tokens": 256}, 3, marks=pytest.mark.slow),
    ],
)
def test_takeover_loads_what_another_worker_computed(
    kind: str,
    settings: dict[str, Any],
    n: int,
    llama: Path,
    plain: Engine,
    options: Callable[[str], TierOptions],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given a worker that is gone, another one continues its answers with the same bits, in other chunks, in a pool
    that forces preemption, and with several choices.
    """
    expected, tier = record(plain, monkeypatch), options(kind)
    whole = answer(plain, request(n=n), request(OTHER, name="o"))
    fill(llama, tier, request(n=n), request(OTHER, name="o"))
    other = load_tiered(llama, tier, **settings)
    rows = record(other, monkeypatch)
    resumed = tuple(tuple(whole.ids("r", choice)[:9]) for choice in range(n))
    rest = answer(other, request(n=n, resumed=resumed), request(OTHER, name="o"))
    assert loaded(other) >= (8 if "num_kv_blocks" in settings else 48)
    assert (other.stats().preemptions > 0) == ("num_kv_blocks" in settings)
    assert rows.keys() <= expected.keys()
    assert all(torch.equal(row, expected[key]) for key, row in rows.items())
    for choice in range(n):
        assert [*resumed[choice], *rest.ids("r", choice)] == whole.ids("r", choice)


@pytest.mark.slow
def test_blocks_of_answers_are_loaded_too(llama: Path, plain: Engine) -> None:
    """Given a prompt of 50 tokens, the next turn of the chat loads the full blocks of the answer of 20."""
    engine = load_tiered(llama, MEMORY, num_kv_blocks=24)
    first = answer(engine).ids("r")
    settle(engine)
    for seed in range(3):  # they take the blocks of the first turn
        answer(engine, request(tuple(random.Random(seed).choices(range(256), k=70)), name="x"))
    following = request((*PROMPT, *first, 1, 2, 3))
    assert answer(engine, following).ids("r") == answer(plain, following).ids("r")
    assert loaded(engine) == 68


@pytest.mark.slow
def test_speculation_saves_only_accepted_tokens(llama: Path, plain: Engine) -> None:
    """With drafts of which a third is wrong, what is saved is what another worker computes."""
    expected = answer(plain).ids("r")
    engine = load_tiered(llama, MEMORY)
    speculate(engine, Oracle({("r", 0): expected}, wrong=0.3))
    assert answer(engine).ids("r") == expected
    settle(engine)
    taker = load_tiered(llama, MEMORY)
    use(taker, store_of(engine))
    assert answer(taker, request(resumed=(tuple(expected[:-1]),))).ids("r") == expected[-1:]
    assert loaded(taker) == 68


@pytest.mark.slow
@pytest.mark.parametrize("difference", ["salt", "weights", "quantization", "block size", ""])
def test_only_equal_workers_and_tenants_share(
    difference: str, llama: Path, filled: MemoryStore, tmp_path: Path
) -> None:
    """Blocks of another salt, other weights, other kernels or another layout are not even found."""
    folder, settings = llama, {}
    if difference == "weights":
        folder = Path(shutil.copytree(llama, tmp_path / "other"))
        edit_config(folder, rms_norm_eps=1e-3)
    elif difference in ("quantization", "block size"):
        settings = {"quantization": "int8"} if difference == "quantization" else {"block_size": 8}
    other = load_tiered(folder, MEMORY, **settings)
    use(other, filled)
    answer(other, request(prefix_salt=b"b" if difference == "salt" else b"a"))
    settle(other)
    assert tier_stats(other).queries == 48
    assert loaded(other) == (0 if difference else 48)
    assert not tier_stats(other).damaged


@pytest.mark.slow
def test_short_and_scored_prompts_do_not_wait(llama: Path) -> None:
    engine = load_tiered(llama, replace(MEMORY, min_tokens=64))
    engine.add(request())
    assert step(engine, Answers()) is None
    assert engine.stats().running == 1
    drain(engine)
    settle(engine)
    assert (tier_stats(engine).queries, tier_stats(engine).saved_bytes > 0) == (0, True), (
        "with its answer it is long"
    )
    scored = EngineRequest("s", PROMPT * 2, SamplingParams(max_tokens=1, prompt_logprobs=1))
    answer(engine, scored)
    assert tier_stats(engine).queries == 0


class Faulty(MemoryStore):
    """Store with the values of another one that hangs or fails in the named method."""

    def __init__(self, other: MemoryStore, fault: str, *, hangs: bool) -> None:
        super().__init__(2**26)
        self._values = other._values.copy()
        self.released = threading.Event()
        self._fault, self._hangs = fault, hangs
        self.calls = 0

    def _check(self, method: str) -> None:
        if method == self._fault:
            self.calls += 1
            if not self._hangs:
                raise StoreFailed
            self.released.wait()

    def count(self, keys: Sequence[bytes]) -> int:
        self._check("count")
        return super().count(keys)

    def get(self, keys: Sequence[bytes]) -> list[Value | None]:
        self._check("get")
        return super().get(keys)

    def put(self, key: bytes, value: Value) -> bool:
        self._check("put")
        return super().put(key, value)


class Impatient(Patient):
    """Rates by which a sequence waits for the named phase for no time."""

    def __init__(self, phase: str) -> None:
        self._phase = phase

    def lookup_limit(self, tokens: int) -> float | None:
        return 0.0 if self._phase == "count" else super().lookup_limit(tokens)

    def load_limit(self, tokens: int, before: int) -> float | None:
        return 0.0 if self._phase == "get" else super().load_limit(tokens, before)


@pytest.mark.slow
@pytest.mark.parametrize("hangs", [True, False])
@pytest.mark.parametrize("fault", ["count", "get", "put"])
def test_requests_go_on_while_the_store_fails(
    fault: str, hangs: bool, llama: Path, plain: Engine, filled: MemoryStore
) -> None:
    """Given a store that hangs or fails, answers are computed; once it answers late, nothing is overwritten."""
    first, following = request(prefix_salt=b"a"), request(OTHER, prefix_salt=b"b")
    engine, store = load_tiered(llama, MEMORY), Faulty(filled, fault, hangs=hangs)
    assert engine.tier is not None
    use(engine, store)
    engine.tier._guard._clock = lambda: 0.0  # a pause does not end
    engine.tier.rates = Impatient(fault if hangs else "")
    assert answer(engine, first).ids("r") == answer(plain, first).ids("r")
    assert loaded(engine) == (48 if fault == "put" else 0)
    expected = answer(plain, following).ids("r")
    assert answer(engine, following).ids("r") == expected
    store.released.set()
    settle(engine)
    assert answer(engine, following).ids("r") == expected
    if not hangs:
        assert tier_stats(engine).failures == store.calls == 1, "after a failure, it is left alone"


def test_a_request_can_be_aborted_while_it_waits(llama: Path) -> None:
    engine, store = load_tiered(llama, MEMORY), Faulty(MemoryStore(0), "count", hangs=True)
    use(engine, store)
    engine.add(request())
    step(engine, Answers())
    assert (engine.stats().waiting, engine.stats().running, engine.has_work()) == (1, 0, True)
    assert engine.abort("r")
    assert not engine.has_work()
    store.released.set()
    assert engine.stats().blocks_used == 0


@pytest.mark.slow
def test_blocks_that_running_sequences_may_need_are_not_reserved(llama: Path, plain: Engine) -> None:
    """Given few free blocks, only as many are loaded as leave some to the running sequences."""
    engine = load_tiered(llama, MEMORY, num_kv_blocks=24)
    answer(engine)
    settle(engine)
    for seed in range(3):
        answer(engine, request(tuple(random.Random(seed).choices(range(256), k=70)), name="x"))
    engine.add(request(OTHER, name="o"))
    found = Answers()
    while not found.tokens:
        step(engine, found)
    engine.add(request())
    assert engine.tier is not None
    [ticket] = engine.tier._tickets.values()
    until(lambda: ticket.found is not None)  # before the other request has ended
    while engine.has_work():
        assert engine.stats().blocks_total - engine.stats().blocks_used >= 0
        step(engine, found)
    assert 0 < loaded(engine) < 48
    assert found.ids("r") == answer(plain).ids("r")


@pytest.mark.slow
def test_what_a_failed_request_computed_is_removed(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_tiered(llama, MEMORY)
    store, found = store_of(engine), Answers()
    engine.add(request())
    while not found.tokens:
        step(engine, found)
    settle(engine)
    assert store._values

    def nan(batch: ScheduledBatch, interrupted: object) -> Tensor:
        return torch.full((len(batch.items), 272), torch.nan)

    monkeypatch.setattr(engine._runner, "run", nan)
    while engine.has_work():
        step(engine, found)
    assert "r" in found.errors
    until(lambda: not store._values)


def test_a_tier_needs_the_prefix_cache_and_room_for_a_block(llama: Path) -> None:
    with pytest.raises(ConfigError, match="kv_tier needs prefix_caching"):
        load(llama, tier=MEMORY, prefix_caching=False)
    with pytest.raises(ConfigError, match="kv_tier_gib must hold at least one block"):
        load(llama, tier=replace(MEMORY, size=100))


def test_without_a_tier_its_code_is_not_used(plain: Engine) -> None:
    assert plain.tier is None
    assert plain.stats().tier is None
    assert type(plain._scheduler) is Scheduler


def test_a_guard_pauses_longer_after_each_failure() -> None:
    now = 0.0
    guard = StoreGuard(Faulty(MemoryStore(0), "count", hangs=False), lambda: now)
    for number, pause in enumerate((1.0, 2.0, 4.0), 1):
        assert guard.call(guard.store.count, [b"a"]) is None
        assert guard.failures == number
        now += pause / 2
        assert guard.call(guard.store.keep, [b"a"]) is None, "it is not asked during a pause"
        now += pause / 2
        assert guard.is_open
    assert guard.call(guard.store.keep, [b"a"]) == [False]
    assert guard.call(guard.store.count, [b"a"]) is None
    now += 1.0
    assert guard.is_open, "a success ends the growth"
