"""Grammars with a real engine: every answer fits, whatever else its request asks for, alone and in a batch."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path

import msgspec
import psutil
import pytest

from shared.errors import EngineFailed, InvalidRequest
from shared.protocol import FinishReason, SamplingParams, Structured
from tests.support.engine_driver import Answers, drain, load
from workers.engine.engine import Engine
from workers.engine.grammar.compiler import XgrammarCompiler
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
    assert isinstance(engine.constraints, XgrammarCompiler)
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
    ("asked", "param"),
    [
        (Structured(regex="(a"), "structured_outputs"),
        (Structured(grammar="root ::= nothing"), "structured_outputs"),
        (Structured(grammar="root ::= root"), "structured_outputs"),
        (Structured(json_schema='{"type": "thing"}', param="response_format"), "response_format"),
    ],
)
def test_grammar_that_does_not_compile_is_refused(engine: Engine, asked: Structured, param: str) -> None:
    assert engine.constraints is not None
    for _ in range(2):  # the to_invalid_request is not kept as a grammar
        with pytest.raises(InvalidRequest, match="cannot be compiled") as refused:
            engine.constraints.start(ConstraintSpec(asked)).result(60)
        assert refused.value.param == param
        assert "/cpp/" not in refused.value.message


@pytest.mark.parametrize(
    "asked",
    [
        Structured(regex=r"canary-\q[a-z]^\j"),
        Structured(json_schema='{"type": "string", "pattern": "canary\\\\q", "contains": 1}', strict=False),
        Structured(grammar="root ::= canary"),
    ],
)
def test_compiler_warnings_do_not_reach_stderr(
    engine: Engine, asked: Structured, capfd: pytest.CaptureFixture[str]
) -> None:
    """Given a schema that xgrammar warns about on stderr, nothing appears there; stderr works again afterwards."""
    assert engine.constraints is not None
    grammar = engine.constraints.start(ConstraintSpec(asked))
    grammar.exception(10)
    os.write(2, b"ours\n")
    assert capfd.readouterr() == ("", "ours\n")


@pytest.mark.parametrize(
    "asked",
    [
        Structured(grammar="root ::= " + " ".join(["[a-z]*"] * 9000)),
        schema({"type": "object", "properties": {f"p{number}": {"type": "integer"} for number in range(1300)}}),
    ],
    ids=["time", "memory"],
)
def test_endless_compilation_is_refused_and_delays_no_other(
    engine: Engine, asked: Structured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given grammars within all limits that take minutes and gigabytes, others are compiled meanwhile, and no
    thread or process is left over after the refusal.
    """
    monkeypatch.setattr("workers.engine.grammar.compile_sandbox.MAX_CPU_S", 1)
    assert isinstance(engine.constraints, XgrammarCompiler)
    engine.constraints.start(ConstraintSpec(Structured(regex="warm"))).result(60)
    stuck = engine.constraints.start(ConstraintSpec(asked))
    engine.constraints.start(ConstraintSpec(Structured(regex=f"beside{len(asked.grammar or '')}"))).result(60)
    with pytest.raises(InvalidRequest, match="too complex"):
        stuck.result(60)
    until(lambda: not trying() and all(each.name != "grammar" for each in threading.enumerate()))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def trial_process() -> psutil.Process:
    [found] = [
        each for each in psutil.Process().children() if "workers.engine.grammar.compile_sandbox" in each.cmdline()
    ]
    return found


def trying() -> list[psutil.Process]:
    """Return the compiling processes, each a child of the process that watches it."""
    found = []
    for watching in trial_process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            found += watching.children()
    return found


def endless(name: str) -> Structured:
    return Structured(grammar="root ::= " + f'"{name}" ' + " ".join(["[a-z]*"] * 9000))


def test_only_cpu_time_of_a_trial_counts(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a limit of 1 s of CPU time, a grammar whose trial is suspended for longer is accepted."""
    monkeypatch.setattr("workers.engine.grammar.compile_sandbox.MAX_CPU_S", 1)
    assert engine.constraints is not None
    engine.constraints.start(ConstraintSpec(Structured(regex="warm"))).result(60)
    trials = trial_process()
    trials.suspend()
    try:
        held_up = engine.constraints.start(ConstraintSpec(Structured(regex="held up")))
        assert wait([held_up], 2.5).not_done  # twice the limit, and more
    finally:
        trials.resume()
    held_up.result(60)


def test_hanging_trial_is_killed_and_blamed_on_the_compiler(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a suspended trial, which uses no CPU time, it fails as the compiler's fault and is killed."""
    monkeypatch.setattr("workers.engine.grammar.compile_sandbox.MAX_CPU_S", 600)
    monkeypatch.setattr("workers.engine.grammar.compile_sandbox.TRIAL_TIMEOUT_S", 2.0)
    assert engine.constraints is not None
    engine.constraints.start(ConstraintSpec(Structured(regex="warm"))).result(60)
    stuck = engine.constraints.start(ConstraintSpec(endless("hang")))
    until(trying)
    for trial in trying():
        trial.suspend()
    with pytest.raises(EngineFailed, match="did not answer"):
        stuck.result(60)
    until(lambda: not trying())


def test_proven_grammar_needs_no_trial(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a trial that would refuse, a proven grammar is compiled, also if it joins an unproven one."""
    refused = InvalidRequest("too complex")
    asked, passed = threading.Event(), threading.Event()

    def check(*_: object) -> None:
        asked.set()
        assert passed.wait(60)
        raise refused

    monkeypatch.setattr("workers.engine.grammar.compile_sandbox.CompileSandbox.check", check)
    assert engine.constraints is not None
    engine.constraints.start(ConstraintSpec(Structured(regex="begun")), proven=True).result(60)
    first = engine.constraints.start(ConstraintSpec(Structured(regex="both")))
    assert asked.wait(60)
    joined = engine.constraints.start(ConstraintSpec(Structured(regex="both")), proven=True)
    passed.set()
    joined.result(60)
    first.result(60)
    with pytest.raises(InvalidRequest):
        engine.constraints.start(ConstraintSpec(Structured(regex="new"))).result(60)


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
    monkeypatch.setattr("workers.engine.grammar.compiler.MAX_CACHE_BYTES", 60_000)
    assert isinstance(engine.constraints, XgrammarCompiler)
    for number in range(20):
        engine.constraints.start(ConstraintSpec(Structured(regex=f"[a-f]{{{number + 1}}}[^x]*"))).result(60)
    kept = [key for key in engine.constraints._cache if b"[a-f]" in key]
    assert 0 < len(kept) < 20
    assert any(b"{20}" in key for key in kept)
