"""Grammars with a real engine: every answer fits, whatever else its request asks for, alone and in a batch."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from shared.errors import InvalidRequest
from shared.protocol import FinishReason, SamplingParams, Structured
from tests.support.engine_driver import Answers, drain, load
from workers.engine.engine import Engine
from workers.engine.grammar.compiler import GrammarCompiler
from workers.engine.grammar.matcher import GrammarMatcher
from workers.engine.interface import ConstraintSpec, EngineRequest

PROMPT = tuple(b"a river runs to the mill, and the mill ")
HOT = SamplingParams(temperature=1.5, seed=5, max_tokens=120)
SCHEMA = {
    "type": "object",
    "properties": {
        "day": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "size": {"type": "integer", "minimum": 10, "maximum": 99},
    },
    "required": ["day", "tags", "size"],
}


@pytest.fixture(scope="module")
def engine(llama: Path) -> Iterator[Engine]:
    return load(llama)


def constrained(
    engine: Engine, name: str, asked: Structured, params: SamplingParams = HOT, **fields
) -> EngineRequest:
    assert isinstance(engine.constraints, GrammarCompiler)
    made = engine.constraints.start(ConstraintSpec(asked)).result(60)
    return EngineRequest(name, PROMPT, params, matcher=made.matcher, **fields)


def answer(engine: Engine, asked: Structured, params: SamplingParams = HOT) -> Answers:
    engine.add(constrained(engine, "r", asked, params))
    return drain(engine)


def schema(value: object = SCHEMA) -> Structured:
    return Structured(json_schema=json.dumps(value))


@pytest.mark.parametrize("seed", range(4))
def test_json_fits_its_schema(engine: Engine, seed: int) -> None:
    answers = answer(engine, schema(), msgspec.structs.replace(HOT, seed=seed, n=2, logprobs=1, presence_penalty=1))
    for choice in range(2):
        found = json.loads(answers.text("r", choice))
        assert list(found) == ["day", "tags", "size"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["day"])
        assert 10 <= found["size"] <= 99
        assert set(found["tags"]) <= {"a", "b"}
        assert answers.reason("r", choice) is FinishReason.STOP


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        (Structured(regex=r"[ab]{3}-\d\d"), r"[ab]{3}-\d\d"),
        (Structured(choice=('say "yes"\n', "nö")), r'say "yes"\n|nö'),
        (Structured(grammar='root ::= "x" num{2}\nnum ::= [0-9] "."'), r"x(\d\.){2}"),
        (Structured(grammar='start: "x" num num\nnum: /[0-9]/ "."'), r"x(\d\.){2}"),
    ],
)
def test_other_constraints_are_followed(engine: Engine, asked: Structured, fits: str) -> None:
    answers = answer(engine, asked)
    assert re.fullmatch(fits, answers.text("r"))
    assert answers.reason("r") is FinishReason.STOP


def test_truncated_answer_ends_with_length(engine: Engine) -> None:
    answers = answer(engine, Structured(regex="[a-z]{60}"), msgspec.structs.replace(HOT, max_tokens=20))
    assert re.fullmatch("[a-z]{20}", answers.text("r"))
    assert answers.reason("r") is FinishReason.LENGTH


def test_a_row_does_not_depend_on_its_neighbours(engine: Engine) -> None:
    alone = answer(engine, schema()).ids("r")
    engine.add(EngineRequest("free", PROMPT, HOT))
    engine.add(constrained(engine, "other", Structured(regex="[0-9]{40}")))
    engine.add(constrained(engine, "r", schema()))
    together = drain(engine)
    assert together.ids("r") == alone
    engine.add(EngineRequest("free", PROMPT, HOT))
    assert drain(engine).ids("free") == together.ids("free")


@pytest.mark.parametrize("done", [1, 9, 30])
def test_resumed_answer_continues_the_same_json(engine: Engine, done: int) -> None:
    whole = answer(engine, schema())
    resumed = (tuple(whole.ids("r")[:done]),)
    engine.add(constrained(engine, "r", schema(), resumed=resumed))
    rest = drain(engine)
    assert rest.ids("r") == whole.ids("r")[done:]
    assert "".join(t.text for t in whole.tokens["r", 0][:done]) + rest.text("r") == whole.text("r")


def test_preempted_sequences_stay_in_their_grammar(llama: Path) -> None:
    small = load(llama, num_kv_blocks=14, prefix_caching=False)
    for number in range(4):
        params = msgspec.structs.replace(HOT, seed=number)
        small.add(constrained(small, str(number), schema(), params))
    answers = drain(small)
    assert small.stats().preemptions > 0
    for number in range(4):
        assert json.loads(answers.text(str(number)))["size"] >= 10


@pytest.mark.parametrize(
    ("asked", "param", "reason"),
    [
        (Structured(grammar="root ::= nothing"), "structured_outputs", "not valid GBNF"),
        (Structured(grammar="start: nothing"), "structured_outputs", "line 1, column 8"),
        (Structured(grammar="start: start"), "structured_outputs", "no answer can fit"),
        (
            schema({"type": "object", "required": ["a"], "additionalProperties": False}),
            "structured_outputs",
            "no answer",
        ),
        (
            Structured(json_schema='{"patternProperties": {"a": {}, "b": {}}}', param="response_format"),
            "response_format",
            "patternProperties",
        ),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_grammar_that_does_not_compile_is_refused(
    engine: Engine, asked: Structured, param: str, reason: str
) -> None:
    assert engine.constraints is not None
    for _ in range(2):  # the error is not kept as a grammar
        with pytest.raises(InvalidRequest, match="cannot be compiled") as refused:
            engine.constraints.start(ConstraintSpec(asked)).result(60)
        assert refused.value.param == param
        assert reason in refused.value.message
        assert "nothing" not in refused.value.message


CHAIN = "start: a0\n" + "\n".join(f"a{i}: a{i + 1}" for i in range(900)) + '\na900: "x"'
REFERENCES = {f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(1_000)}
HOSTILE = {
    "optional": Structured(grammar="start: " + " ".join(['("a"|"b")?'] * 1_000)),
    "doubling": Structured(
        grammar="start: A60\n" + "\n".join(f"A{i + 1}: A{i} A{i}" for i in range(60)) + '\nA0: "x"'
    ),
    "rules": Structured(grammar=CHAIN),
    "references": schema({"$ref": "#/$defs/d0", "$defs": {**REFERENCES, "d1000": {}}}),
    "quantifiers": Structured(regex="((a{1,1000}){1,1000}b?){1,1000}"),
    "enum": schema({"enum": [f"word {number}" for number in range(3_900)]}),
    "options": schema({"oneOf": [{"const": number} for number in range(3_900)]}),
    "products": schema(
        {"allOf": [{"anyOf": [{"required": [f"{i} {j}"]} for j in range(10)]} for i in range(10)]},
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammar_ends_alone(engine: Engine, name: str) -> None:
    """Given a grammar that costs as much as the checks let through, it is compiled or refused, and its answer ends,
    beside another that is not disturbed.
    """
    assert engine.constraints is not None
    before = psutil.Process().memory_info().rss
    pending = engine.constraints.start(ConstraintSpec(HOSTILE[name]))
    engine.add(constrained(engine, "other", Structured(regex=f"[ab]{{9}}{name}")))
    with contextlib.suppress(InvalidRequest):
        made = pending.result(60)
        engine.add(EngineRequest("hostile", PROMPT, HOT, matcher=made.matcher))
    answers = drain(engine)
    assert re.fullmatch(f"[ab]{{9}}{name}", answers.text("other"))
    assert all(isinstance(error, InvalidRequest) for error in answers.errors.values())
    assert psutil.Process().memory_info().rss - before < 300 * 2**20


def test_grammar_of_a_failed_answer_is_compiled_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a matcher that takes too long, its answer ends with an error, and the next request gets a new lexer."""
    assert isinstance(engine.constraints, GrammarCompiler)
    asked = ConstraintSpec(Structured(regex="again[ab]+"))
    first = engine.constraints.start(asked).result(60).matcher()
    assert isinstance(first, GrammarMatcher)
    monkeypatch.setattr("workers.engine.grammar.matcher.NOT_ALLOWED", ())
    with pytest.raises(InvalidRequest, match="too complex"):
        first.accept(engine.tokenizer.encode("x")[0])
    cached = len(engine.constraints._cache)
    engine.constraints.start(asked).result(60)
    assert len(engine.constraints._cache) == cached + 1


def test_matching_time_is_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engine.grammar.matcher.MAX_MATCHING_S", -1.0)
    answers = answer(engine, Structured(regex="[ab]{9}"))
    assert "too ambiguous" in answers.errors["r"].message


def test_forced_tokens_are_those_of_the_text_that_must_follow(engine: Engine) -> None:
    assert engine.constraints is not None
    matcher = engine.constraints.start(ConstraintSpec(Structured(regex="x(ab|c)de"))).result(60).matcher()
    assert matcher.forced_tokens() == engine.tokenizer.encode("x")
    matcher.accept(*engine.tokenizer.encode("x"))
    assert matcher.forced_tokens() == []
    matcher.accept(*engine.tokenizer.encode("a"))
    assert matcher.forced_tokens() == engine.tokenizer.encode("bde")


def test_special_tokens_do_not_count_as_text(engine: Engine) -> None:
    """<bos> could match a character of a string, and would be invisible."""
    params = msgspec.structs.replace(HOT, logit_bias={256: 100.0})
    assert re.fullmatch("[^x]{5}", answer(engine, Structured(regex="[^x]{5}"), params).text("r"))


def test_logit_bias_selects_tokens(engine: Engine) -> None:
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=8, logit_bias={65: 100.0, 66: 99.0})
    engine.add(EngineRequest("a", PROMPT, params))
    engine.add(EngineRequest("b", PROMPT, msgspec.structs.replace(params, logit_bias={65: -100.0, 66: 100.0})))
    answers = drain(engine)
    assert set(answers.ids("a")) <= {65, 66}
    assert set(answers.ids("b")) == {66}
    with pytest.raises(InvalidRequest, match="vocabulary"):
        engine.add(EngineRequest("c", PROMPT, msgspec.structs.replace(params, logit_bias={272: 1.0})))


def test_least_recently_used_grammars_are_dropped(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engine.grammar.compiler.MAX_CACHED_GRAMMARS", 5)
    assert isinstance(engine.constraints, GrammarCompiler)
    for number in range(9):
        engine.constraints.start(ConstraintSpec(Structured(regex=f"[a-f]{{{number + 1}}}[^x]*"))).result(60)
    assert len(engine.constraints._cache) == 5
    assert any(b"{9}" in key for key in engine.constraints._cache)
