"""Answers with a watermark: of a tiny model however they are run, and of SmolLM2 with their detection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.errors import InvalidRequest
from shared.protocol import Message, SamplingParams, Structured
from tests.support.engine_driver import Answers, drain, load
from workers.engine.engine import Engine
from workers.engine.interface import ConstraintSpec, EngineRequest
from workers.engine.sampling.watermark import GreenListMark, GumbelMark, TokenMark
from workers.engine.sampling.watermark_detection import detect

PROMPT = tuple(b"a river runs to the mill, and the mill ")
WARM = SamplingParams(temperature=1.2, seed=5, n=2, max_tokens=40, ignore_eos=True)
MARKED = msgspec.structs.replace(WARM, watermark=True)
MARKS: list[TokenMark] = [GreenListMark(key=3, delta=4.0), GumbelMark(key=3)]


@pytest.fixture(scope="module", params=MARKS, ids=["green_list", "gumbel"])
def mark(request: pytest.FixtureRequest) -> TokenMark:
    chosen: TokenMark = request.param
    return chosen


@pytest.fixture(scope="module")
def engine(llama: Path, mark: TokenMark) -> Engine:
    return load(llama, watermark=mark)


def answers(engine: Engine, *requests: EngineRequest) -> Answers:
    for request in requests:
        engine.add(request)
    found = drain(engine)
    assert not found.errors
    return found


def test_a_marked_answer_does_not_depend_on_how_it_is_run(engine: Engine, llama: Path, mark: TokenMark) -> None:
    """It is the same alone, among neighbours with small chunks and preemptions, and after a takeover."""
    whole = answers(engine, EngineRequest("r", PROMPT, MARKED))
    assert whole.ids("r", 0) != whole.ids("r", 1)
    for choice in range(2):
        assert detect(mark, whole.ids("r", choice), 272).p_value < 1e-4
    crowd = load(llama, watermark=mark, max_num_batched_tokens=13, block_size=4, num_kv_blocks=40)
    others = [EngineRequest(f"{i}", PROMPT[i:], msgspec.structs.replace(WARM, seed=i)) for i in range(6)]
    together = answers(crowd, *others, EngineRequest("r", PROMPT, MARKED))
    assert crowd.stats().preemptions > 0
    resumed = tuple(tuple(whole.ids("r", choice)[:9]) for choice in range(2))
    rest = answers(engine, EngineRequest("r", PROMPT, MARKED, resumed))
    for choice in range(2):
        assert together.ids("r", choice) == whole.ids("r", choice)
        assert rest.tokens["r", choice] == whole.tokens["r", choice][9:]
    alone = answers(engine, *others)
    assert all(alone.ids(f"{i}") == together.ids(f"{i}") for i in range(6)), "a marked neighbour changes nothing"


def test_a_mark_keeps_grammars_and_log_probabilities(engine: Engine) -> None:
    """A constrained answer keeps its form; log-probabilities are the model's own."""
    digits = Structured(regex="[0-9]{12}")
    constraint = engine.constraints.start(ConstraintSpec(digits)).result()
    held = msgspec.structs.replace(MARKED, structured_outputs=digits, n=1, ignore_eos=False)
    bounded = msgspec.structs.replace(MARKED, allowed_token_ids=tuple(range(64, 90)), n=1)
    scored = msgspec.structs.replace(MARKED, logprobs=1, n=1, max_tokens=1)
    found = answers(
        engine,
        EngineRequest("digits", PROMPT, held, matcher=constraint.matcher),
        EngineRequest("letters", PROMPT, bounded),
        EngineRequest("marked", PROMPT, scored),
        EngineRequest("plain", PROMPT, msgspec.structs.replace(scored, watermark=False)),
    )
    text = found.text("digits")
    assert text.isdigit()
    assert len(text) == 12
    assert set(found.ids("letters")) <= set(range(64, 90))
    marked, plain = (found.tokens[name, 0][0].logprobs for name in ("marked", "plain"))
    assert marked is not None
    assert plain is not None
    assert marked.top == plain.top


def test_rows_without_a_mark_do_nothing_for_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError

    for kind in (GreenListMark, GumbelMark):
        monkeypatch.setattr(kind, "bias", fail)
        monkeypatch.setattr(kind, "noise_key", fail)
    answers(engine, EngineRequest("r", PROMPT, WARM))


def test_greedy_answers_have_a_green_list_only(engine: Engine, mark: TokenMark) -> None:
    greedy = EngineRequest("r", PROMPT, SamplingParams(temperature=0.0, max_tokens=40, watermark=True))
    if isinstance(mark, GreenListMark):
        assert detect(mark, answers(engine, greedy).ids("r"), 272).p_value < 0.05
    else:
        with pytest.raises(InvalidRequest, match="watermark needs a temperature"):
            engine.add(greedy)
        assert not engine.has_work()


def test_the_mark_belongs_to_the_fingerprint_without_its_key(llama: Path) -> None:
    def fingerprint(mark: TokenMark) -> str:
        return load(llama, watermark=mark).fingerprint

    assert fingerprint(GreenListMark(1)) == fingerprint(GreenListMark(2)) != fingerprint(GumbelMark(1))
    assert fingerprint(GreenListMark(1)) != fingerprint(GreenListMark(1, delta=1.0))


@pytest.mark.slow
def test_marks_of_a_real_model_are_found_in_the_text(smollm2: Path, mark: TokenMark) -> None:
    engine = load(smollm2, watermark=mark)
    prompt = tuple(engine.tokenizer.encode_chat([Message("user", "Tell me a story about a river.")]))
    params = SamplingParams(temperature=1.0, seed=2, max_tokens=48, watermark=True)
    plain = msgspec.structs.replace(params, watermark=False)
    found = answers(engine, EngineRequest("marked", prompt, params), EngineRequest("plain", prompt, plain))

    def p_value(name: str) -> float:
        return detect(mark, engine.tokenizer.encode(found.text(name), special=False), 49152).p_value

    assert p_value("marked") < 1e-4
    assert p_value("plain") > 1e-3
