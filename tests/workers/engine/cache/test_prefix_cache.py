"""A prompt that begins like an earlier one is computed from where they differ, with the same answer."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from shared.errors import EngineFailed
from shared.protocol import PriorityClass, SamplingParams
from tests.support.engine_driver import GREEDY, Answers, drain, load, run, step
from workers.engine.engine import Engine
from workers.engine.interface import EngineRequest

SAMPLED = SamplingParams(temperature=1.3, top_p=0.95, seed=7, max_tokens=20, repetition_penalty=1.1)
TURN = tuple(random.Random(4).choices(range(256), k=50))


def hits(engine: Engine) -> int:
    return engine.stats().prefix_hits


def ask(engine: Engine, prompt: tuple[int, ...], params: SamplingParams = GREEDY, salt: bytes = b"") -> list[int]:
    engine.add(EngineRequest("r", prompt, params, prefix_salt=salt))
    return drain(engine).ids("r")


def family(count: int) -> list[list[int]]:
    """Return prompts that share beginnings of several lengths; one prompt occurs twice."""
    rng = random.Random(count)
    stem = [rng.randrange(256) for _ in range(64)]
    found = [
        stem[: rng.randint(1, 64)] + [rng.randrange(256) for _ in range(rng.randint(0, 20))] for _ in range(count)
    ]
    return [*found, stem, stem]


@pytest.mark.parametrize(("name", "budget", "blocks"), [("llama", 16, 256), ("llama", 16, 36), ("qwen3", 256, 256)])
def test_answers_are_the_same_with_and_without_caching(
    name: str, budget: int, blocks: int, checkpoints: Callable[[str], Path]
) -> None:
    shape = {"max_num_batched_tokens": budget, "num_kv_blocks": blocks, "block_size": 4, "max_num_seqs": 6}
    plain = load(checkpoints(name), **shape, prefix_caching=False)
    cached = load(checkpoints(name), **shape)
    expected = run(plain, family(10))
    assert run(cached, family(10)) == expected
    assert run(cached, family(10)) == expected, "and once more, from what is kept"
    assert hits(cached) > 300
    assert hits(plain) == plain.stats().prefix_queries == 0


def test_sampled_choices_and_logprobs_are_the_same(llama: Path) -> None:
    params = msgspec.structs.replace(SAMPLED, n=3, logprobs=2)
    engine = load(llama, block_size=4)
    engine.add(EngineRequest("first", TURN, params))
    engine.add(EngineRequest("second", TURN, params))
    first = drain(engine).tokens
    engine.add(EngineRequest("again", TURN, params))
    again = drain(engine).tokens
    assert hits(engine) >= 48
    for choice in range(3):
        got, wanted = again["again", choice], first["first", choice]
        assert [(t.id, t.text) for t in got] == [(t.id, t.text) for t in wanted]
        for a, b in zip(got, wanted, strict=True):
            assert a.logprobs is not None and b.logprobs is not None
            assert a.logprobs.logprob == pytest.approx(b.logprobs.logprob, abs=1e-5)


def test_chat_reuses_earlier_turns_and_answers(llama: Path) -> None:
    """Given a turn of 50 tokens and an answer of 20, the next turn computes only the tokens after their full
    blocks.
    """
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    engine = load(llama, block_size=4)
    answer = ask(engine, TURN, params)
    assert hits(engine) == 0
    before = engine.stats().prefix_queries
    second = (*TURN, *answer, 1, 2, 3)
    assert ask(engine, second, params) == ask(load(llama, prefix_caching=False), second, params)
    assert hits(engine) == 68  # the last token of the answer was never computed
    assert engine.stats().prefix_queries - before == 73


def test_hit_does_not_change_any_bit_of_the_logits(llama: Path) -> None:
    """Given chunks of one block, the rest of the prompt is computed in the same pieces with and without a hit."""
    engine = load(llama, max_num_batched_tokens=16)
    compute, seen = engine._runner.run, []

    def kept(batch, interrupted):
        logits = compute(batch, interrupted)
        seen.append(logits.clone())
        return logits

    engine._runner.run = kept
    ask(engine, TURN)
    cold = [logits for logits in seen if len(logits)]
    seen.clear()
    ask(engine, TURN)
    assert hits(engine) == 48
    assert len(seen) == len(cold)
    assert all(torch.equal(a, b) for a, b in zip(seen, cold, strict=True))


@pytest.mark.parametrize("length", [47, 48, 49])
def test_last_token_is_always_computed(length: int, llama: Path) -> None:
    engine = load(llama)
    assert ask(engine, TURN[:length]) == ask(engine, TURN[:length])
    assert hits(engine) == (length - 1) // 16 * 16


def test_nothing_is_shared_between_salts(llama: Path) -> None:
    engine = load(llama)
    alone = ask(engine, TURN, salt=b"one")
    assert ask(engine, TURN, salt=b"two") == alone
    assert hits(engine) == 0
    assert ask(engine, TURN, salt=b"one") == alone
    assert hits(engine) == 48


def test_concurrent_requests_share_blocks(llama: Path) -> None:
    """Given a budget of one prompt per step, each request finds the blocks that the first has computed."""
    engine = load(llama, max_num_batched_tokens=50)
    for name in "abcd":
        engine.add(EngineRequest(name, TURN, GREEDY))
    answers = Answers()
    for _ in range(3):
        step(engine, answers)
    assert engine.stats().running == 4
    assert hits(engine) == 3 * 48
    assert engine.stats().blocks_used == 3 + 4
    while engine.has_work():
        step(engine, answers)
    assert len({tuple(answers.ids(name)) for name in "abcd"}) == 1


def test_least_recently_used_blocks_are_reallocated(llama: Path) -> None:
    """Given a pool for four prompts, the first of five is dropped and the last is kept."""
    engine = load(llama, num_kv_blocks=13)
    params = SamplingParams(temperature=0.0, max_tokens=1)
    prompts = [(index, *TURN[1:49]) for index in range(5)]
    for prompt in (*prompts, prompts[4]):
        ask(engine, prompt, params)
    assert hits(engine) == 48
    ask(engine, prompts[0], params)
    assert hits(engine) == 48


def test_preempted_sequence_finds_its_blocks_again(llama: Path) -> None:
    engine = load(llama, max_num_seqs=1)
    engine.add(EngineRequest("batch", TURN, GREEDY, priority=PriorityClass.BATCH))
    answers = Answers()
    for _ in range(3):
        step(engine, answers)
    engine.add(EngineRequest("now", TURN, GREEDY, priority=PriorityClass.INTERACTIVE))
    while engine.has_work():
        step(engine, answers)
    assert answers.ids("batch") == answers.ids("now")
    assert hits(engine) == 48


def test_waiting_sequence_holds_no_found_blocks(llama: Path) -> None:
    """Given a cached prompt and too few blocks for its rest, the sequence waits without blocks, and then runs."""
    engine = load(llama, num_kv_blocks=8)
    alone = ask(engine, TURN)
    engine.add(EngineRequest("long", TURN[::-1], GREEDY))
    answers = Answers()
    step(engine, answers)
    engine.add(EngineRequest("known", TURN, GREEDY))
    before = engine.stats()
    for _ in range(3):
        step(engine, answers)
    assert engine.stats().waiting == 1
    assert engine.stats().blocks_used == before.blocks_used == 4
    assert engine.stats().prefix_queries == before.prefix_queries
    while engine.has_work():
        step(engine, answers)
    assert answers.ids("known") == alone


def test_blocks_of_a_failed_request_are_not_found(llama: Path, tmp_path: Path) -> None:
    """Given a fault during one answer, the same prompt is computed again, correctly."""
    engine = load(Path(shutil.copytree(llama, tmp_path / "m")))
    good = ask(load(llama), TURN)
    compute = engine._runner.run

    def faulty(batch, interrupted):
        logits = compute(batch, interrupted)
        for cache in engine._runner._caches:
            cache.values.fill_(torch.nan)
        return torch.full_like(logits, torch.nan)

    engine._runner.run = faulty
    engine.add(EngineRequest("r", TURN, GREEDY))
    assert isinstance(drain(engine).errors["r"], EngineFailed)
    engine._runner.run = compute
    assert ask(engine, TURN) == good
    assert hits(engine) == 0


def test_the_prompts_cached_tokens_are_reported(llama: Path) -> None:
    """Given several choices, they are counted once, when the request starts, and sent with its first tokens."""
    engine = load(llama, block_size=4)
    engine.add(EngineRequest("cold", TURN, GREEDY))
    engine.add(EngineRequest("other", TURN[1:], GREEDY))
    assert {output.cached_tokens for output in engine.step()} == {0}
    drain(engine)
    engine.add(EngineRequest("warm", TURN, msgspec.structs.replace(GREEDY, n=2, max_tokens=2)))
    found = []
    while engine.has_work():
        found += [output.cached_tokens for output in engine.step()]
    assert found[0] == 48, "all but the last token, in blocks of 4"
    assert set(found[1:]) == {0}
