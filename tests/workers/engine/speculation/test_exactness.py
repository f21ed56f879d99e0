"""Answers have the same tokens, texts and scores with and without speculation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.protocol import SamplingParams, Structured
from tests.support.drafters import Oracle, speculate
from tests.support.engine_driver import Answers, drain, load
from workers.engine.engine import Engine
from workers.engine.interface import ConstraintSpec, EngineRequest, Matcher
from workers.engine.sampling.rows import is_greedy
from workers.engine.sampling.watermark import GreenListMark, GumbelMark, TokenMark
from workers.engine.speculation.earlier_answers import EarlierAnswers
from workers.engine.speculation.interface import Drafter
from workers.engine.speculation.ngrams import NgramDrafter

PROMPT = tuple(b"the mill by the river, the mill by the ")
SCHEMA = (
    '{"type":"object","properties":{"river":{"enum":["Rhone","Rhine"]},"mills":{"type":"integer"}},'
    '"required":["river","mills"],"additionalProperties":false}'
)
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, top_k=60, seed=11, max_tokens=40)
Requests = list[EngineRequest]


def matcher(engine: Engine, **form: Any) -> Callable[[], Matcher]:
    assert engine.constraints is not None
    return engine.constraints.start(ConstraintSpec(Structured(**form))).result(60).matcher


def requests(engine: Engine, mark: TokenMark | None = None) -> Requests:
    """Return requests of every kind whose next token depends on more than its logits, with the engine's mark."""

    def replaced(params: SamplingParams, **fields: Any) -> SamplingParams:
        return msgspec.structs.replace(params, **fields)

    def marked(request: EngineRequest) -> EngineRequest:
        if mark is None or (isinstance(mark, GumbelMark) and is_greedy(request.params)):  # which it refuses
            return request
        return dataclasses.replace(request, params=replaced(request.params, watermark=True))

    wanted = [
        EngineRequest("greedy", PROMPT, GREEDY),
        EngineRequest("sampled", PROMPT, SAMPLED),
        EngineRequest("choices", PROMPT, replaced(SAMPLED, n=3, logprobs=2)),
        EngineRequest(
            "penalties",
            PROMPT,
            replaced(
                SAMPLED, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3, logit_bias={7: 2.0}
            ),
        ),
        EngineRequest("stop", PROMPT, replaced(SAMPLED, temperature=2.0, stop=("e", "zq"), min_tokens=4)),
        EngineRequest("bad words", PROMPT, replaced(GREEDY, min_tokens=9), bad_words=((101,), (32, 116))),
        EngineRequest("typical", PROMPT, replaced(SAMPLED, typical_p=0.7, min_p=0.01, logprobs=0)),
        EngineRequest("scored", PROMPT, replaced(GREEDY, prompt_logprobs=1, echo=True)),
        EngineRequest("schema", PROMPT, GREEDY, matcher=matcher(engine, json_schema=SCHEMA)),
        EngineRequest("regex", PROMPT, SAMPLED, matcher=matcher(engine, regex="(the|mill|river| ){9}[à-ü]{2}")),
        EngineRequest("long", PROMPT * 3, replaced(SAMPLED, seed=3, max_tokens=60)),
    ]
    return [marked(request) for request in wanted]


def run(engine: Engine, wanted: Requests) -> Answers:
    for request in wanted:
        engine.add(request)
    answers = drain(engine)
    assert answers.finished == {request.id for request in wanted}
    return answers


@pytest.fixture(scope="module")
def plain(llama: Path) -> Answers:
    """The answers of one token per step."""
    engine = load(llama, speculation="off", block_size=4)
    return run(engine, requests(engine))


def ids(answers: Answers) -> dict[tuple[str, int], list[int]]:
    return {key: [token.id for token in tokens] for key, tokens in answers.tokens.items()}


SMALL_POOL = {"num_kv_blocks": 60, "max_num_batched_tokens": 24}
CASES: list[tuple[float, dict[str, Any]]] = [
    (0.0, {"max_num_batched_tokens": 16}),
    (0.3, SMALL_POOL),
    (0.3, {"watermark": GreenListMark(key=3, delta=4.0)}),
]
SLOW_CASES: list[tuple[float, dict[str, Any]]] = [
    (0.0, {"block_size": 16, "max_num_seqs": 4}),
    (0.3, {"scheduling": "static"}),
    (0.3, {"quantization": "int8"}),
    (0.3, {"quantization": "int4", "watermark": GumbelMark(key=3)}),
    (0.3, {**SMALL_POOL, "watermark": GumbelMark(key=3)}),
    (0.6, {**SMALL_POOL, "prefix_caching": False}),
    (1.0, {}),
    (1.0, {**SMALL_POOL, "max_num_batched_tokens": 40}),
]


@pytest.mark.parametrize(
    ("wrong", "settings"), [*CASES, *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW_CASES)], ids=str
)
def test_answers_are_the_same(wrong: float, settings: dict[str, Any], llama: Path, plain: Answers) -> None:
    """Given drafts that are right, sometimes right or never, with preemption and prompts in chunks."""
    engine = load(llama, **{"block_size": 4, **settings})
    mark = settings.get("watermark")
    if {"quantization", "watermark"} & settings.keys():
        kept = {name: value for name, value in settings.items() if name not in SMALL_POOL}
        other = load(llama, speculation="off", **kept)
        unmarked, plain = plain, run(other, requests(other, mark))
        assert unmarked.tokens != plain.tokens
    speculator = speculate(engine, Oracle(ids(plain), wrong))
    answers = run(engine, requests(engine, mark))
    assert answers.tokens == plain.tokens
    stats = speculator.stats()
    preemptions = engine.stats().preemptions
    assert sum(waits.preemptions for waits in answers.waits.values()) == preemptions
    if "num_kv_blocks" in settings:
        assert preemptions > 0
    assert stats.draft_tokens > 20
    assert (sum(stats.accepted) > 20) if wrong < 0.5 else (sum(stats.accepted) < stats.draft_tokens)


def test_drafters_of_a_worker_change_no_answer(llama: Path, plain: Answers) -> None:
    engine = load(llama)
    drafters: tuple[Drafter, ...] = (EarlierAnswers(), NgramDrafter())
    speculator = speculate(engine, *drafters)
    for _ in range(2):  # the second time, the answers are known
        assert run(engine, requests(engine)).tokens == plain.tokens
    assert sum(speculator.stats().accepted) > 200


def test_an_answer_taken_over_is_the_same(llama: Path, plain: Answers) -> None:
    """Given an answer whose first tokens an earlier run has logged."""
    engine = load(llama, block_size=4)
    for done in (1, 13):
        speculate(engine, Oracle(ids(plain)))
        wanted = [
            each for each in requests(engine) if each.id in ("greedy", "sampled", "choices", "penalties", "regex")
        ]
        for request in wanted:
            resumed = tuple(
                tuple(token.id for token in plain.tokens[request.id, choice][:done])
                for choice in range(request.params.n)
            )
            engine.add(dataclasses.replace(request, resumed=resumed))
        rest = drain(engine).tokens
        for (job_id, choice), tokens in plain.tokens.items():
            if any(request.id == job_id for request in wanted):
                assert rest.get((job_id, choice), []) == tokens[done:]


def test_a_right_draft_gives_its_tokens_in_one_step(llama: Path, plain: Answers) -> None:
    engine = load(llama)
    speculate(engine, Oracle(ids(plain)), most=40)
    engine.add(EngineRequest("greedy", PROMPT, GREEDY))
    steps = 0
    while engine.has_work():
        engine.step()
        steps += 1
    assert steps < 12
