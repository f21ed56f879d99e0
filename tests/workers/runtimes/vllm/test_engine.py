"""Generator over vLLM's engine, with a scripted executor in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared.errors import ContextLengthExceeded, InvalidRequest
from shared.protocol import FinishReason, PriorityClass, SamplingParams
from tests.support.checkpoints import byte_tokenizer
from tests.support.engine_driver import Answers, drain, step
from tests.support.scripted_executor import IMPOSSIBLE, LIKELIEST, ScriptedExecutor
from workers.engine.interface import EngineRequest
from workers.engine.sampling.logprobs import MIN_LOGPROB
from workers.engine.sampling.watermark import GreenListMark
from workers.engine.text.tokenizer import Tokenizer
from workers.runtimes.vllm.engine import VllmEngine

SCRIPT = "abcdefghij"
EOS = 257


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("bytes")
    byte_tokenizer().save_pretrained(folder)
    return Tokenizer(folder)


@pytest.fixture
def executor(tokenizer: Tokenizer) -> ScriptedExecutor:
    return ScriptedExecutor(tokenizer.encode(SCRIPT))


def make_engine(executor: ScriptedExecutor, tokenizer: Tokenizer, *, native_sampling: bool) -> VllmEngine:
    return VllmEngine(
        executor,
        tokenizer,
        frozenset({EOS}),
        computation={},
        max_num_seqs=4,
        native_sampling=native_sampling,
        watermark=GreenListMark(),
    )


@pytest.fixture
def engine(tokenizer: Tokenizer, executor: ScriptedExecutor) -> VllmEngine:
    return make_engine(executor, tokenizer, native_sampling=True)


@pytest.fixture
def prompt(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The first four tokens of the script: an answer to it begins with the fifth."""
    return tuple(tokenizer.encode(SCRIPT[:4]))


def answer(engine: VllmEngine, prompt: tuple[int, ...], **params: Any) -> Answers:
    engine.add(EngineRequest("r", prompt, SamplingParams(**{"max_tokens": 6, **params})))
    return drain(engine)


def test_tokens_become_text(engine: VllmEngine, prompt: tuple[int, ...]) -> None:
    answers = answer(engine, prompt)
    assert answers.text("r") == "efghij"
    assert answers.reason("r") is FinishReason.LENGTH


def test_a_stop_string_ends_the_choice_in_vllm_too(
    engine: VllmEngine, executor: ScriptedExecutor, prompt: tuple[int, ...]
) -> None:
    answers = answer(engine, prompt, stop=("gh",))
    assert (answers.text("r"), answers.reason("r")) == ("ef", FinishReason.STOP)
    assert executor.aborted == ["r/0"]


def test_a_stop_token_ends_the_choice(engine: VllmEngine, tokenizer: Tokenizer, prompt: tuple[int, ...]) -> None:
    answers = answer(engine, prompt, stop_token_ids=tuple(tokenizer.encode("h")))
    assert (answers.text("r"), answers.reason("r")) == ("efg", FinishReason.STOP)


def test_each_choice_is_a_request_of_its_own(
    engine: VllmEngine, executor: ScriptedExecutor, prompt: tuple[int, ...]
) -> None:
    answers = answer(engine, prompt, n=3, max_tokens=2)
    assert [answers.text("r", choice) for choice in range(3)] == ["ef"] * 3
    assert list(executor.added) == ["r/0", "r/1", "r/2"]


def test_a_takeover_continues_after_the_logged_tokens(
    engine: VllmEngine, executor: ScriptedExecutor, prompt: tuple[int, ...], tokenizer: Tokenizer
) -> None:
    logged = tuple(tokenizer.encode("efg"))
    engine.add(EngineRequest("r", prompt, SamplingParams(max_tokens=6, n=2), resumed=(logged, logged[:1])))
    answers = drain(engine)
    assert (answers.text("r", 0), answers.text("r", 1)) == ("hij", "fghij")
    assert [added["max_tokens"] for added in executor.added.values()] == [3, 5]


def test_a_takeover_of_a_complete_answer_ends_at_once(
    engine: VllmEngine, prompt: tuple[int, ...], tokenizer: Tokenizer
) -> None:
    logged = tuple(tokenizer.encode("ef"))
    engine.add(EngineRequest("r", prompt, SamplingParams(max_tokens=2), resumed=(logged,)))
    assert drain(engine).finished == {"r"}


def test_an_aborted_request_leaves_vllm(
    engine: VllmEngine, executor: ScriptedExecutor, prompt: tuple[int, ...]
) -> None:
    engine.add(EngineRequest("r", prompt, SamplingParams(max_tokens=6, n=2)))
    step(engine, Answers())
    assert engine.abort("r")
    assert executor.aborted == ["r/0", "r/1"]
    assert not engine.has_work()
    assert not engine.abort("r")


def test_class_and_salt_reach_vllm(engine: VllmEngine, executor: ScriptedExecutor, prompt: tuple[int, ...]) -> None:
    for priority in PriorityClass:
        engine.add(EngineRequest(priority, prompt, SamplingParams(), priority=priority, prefix_salt=b"tenant"))
    assert [each["priority"] for each in executor.added.values()] == [0, 1, 2]
    assert {each["salt"] for each in executor.added.values()} == {b"tenant"}


def test_logprobs_are_spelled_and_finite(engine: VllmEngine, prompt: tuple[int, ...]) -> None:
    first = answer(engine, prompt, logprobs=3).tokens["r", 0][0]
    assert first.logprobs is not None
    assert (first.logprobs.logprob, first.logprobs.piece) == (-1.0, "e")
    assert [index for index, _, _ in first.logprobs.top] == [LIKELIEST, first.id, IMPOSSIBLE]
    assert first.logprobs.top[2][1] == MIN_LOGPROB


def test_the_prompt_is_scored_and_echoed(engine: VllmEngine, prompt: tuple[int, ...]) -> None:
    engine.add(EngineRequest("r", prompt, SamplingParams(max_tokens=2, n=2, echo=True, prompt_logprobs=1)))
    echoed = [token for output in engine.step() for token in output.prompt]
    assert "".join(token.text for token in echoed) == SCRIPT[:4]
    assert echoed[0].logprobs is None
    assert all(token.logprobs and token.logprobs.rank == 2 and len(token.logprobs.top) == 1 for token in echoed[1:])
    assert not [token for output in engine.step() for token in output.prompt]


def test_an_answer_without_tokens_scores_the_prompt_alone(engine: VllmEngine, prompt: tuple[int, ...]) -> None:
    engine.add(EngineRequest("r", prompt, SamplingParams(max_tokens=0, echo=True)))
    [output] = engine.step()
    assert (output.tokens, output.finished, len(output.prompt)) == ((), True, 4)


def test_cached_tokens_are_counted(engine: VllmEngine, prompt: tuple[int, ...]) -> None:
    engine.add(EngineRequest("r", prompt, SamplingParams(max_tokens=2)))
    [output] = engine.step()
    assert output.cached_tokens == 2
    assert (engine.stats().prefix_queries, engine.stats().prefix_hits) == (4, 2)


def test_what_does_not_fit_is_refused(engine: VllmEngine, prompt: tuple[int, ...]) -> None:
    with pytest.raises(ContextLengthExceeded):
        engine.add(EngineRequest("r", prompt * 16, SamplingParams(max_tokens=0)))  # vLLM computes a token
    with pytest.raises(InvalidRequest, match="n must be at most 4"):
        engine.add(EngineRequest("r", prompt, SamplingParams(n=5)))


def test_a_refusal_by_vllm_leaves_nothing_behind(tokenizer: Tokenizer, executor: ScriptedExecutor) -> None:
    engine = VllmEngine(
        executor,
        tokenizer,
        frozenset({EOS}),
        computation={},
        max_num_seqs=4,
        native_sampling=False,
        watermark=GreenListMark(),
    )
    with pytest.raises(InvalidRequest, match="vLLM does not accept this request: temperature"):
        engine.add(EngineRequest("r", (1,), SamplingParams(temperature=3.0)))
    assert not engine.has_work()
    assert not engine.abort("r")
