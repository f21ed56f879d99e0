"""Scripted engine: its rule, continuation, and directives."""

from __future__ import annotations

import subprocess
import sys
import time

from shared.protocol import SamplingParams
from tests.support.waiting import LIMIT_S
from workers.engine.interface import EngineRequest
from workers.scripted_engine import ScriptedEngine, expected


def request(prompt: str, tokens: int, resumed: tuple[tuple[int, ...], ...] = ()) -> EngineRequest:
    return EngineRequest(prompt, tuple(map(ord, prompt)), SamplingParams(max_tokens=tokens), resumed)


def drain(engine: ScriptedEngine) -> list[int]:
    ids = []
    while engine.has_work():
        ids += [token.id for output in engine.step() for token in output.tokens]
    return ids


def test_an_answer_follows_the_rule_and_continues() -> None:
    prompt = tuple(map(ord, "go on"))
    engine = ScriptedEngine()
    engine.add(request("go on", 6))
    whole = drain(engine)
    assert whole == [expected(prompt, 0, position) for position in range(6)]
    engine.add(request("go on", 6, (tuple(whole[:4]),)))
    assert drain(engine) == whole[4:]


def test_the_order_of_a_prompt_changes_the_answer() -> None:
    assert expected([1, 2], 0, 0) != expected([2, 1], 0, 0)


def test_a_pace_delays_only_its_own_request() -> None:
    prompt = "[pace 200] slow"
    engine = ScriptedEngine()
    engine.add(request(prompt, 2))
    engine.add(request("fast", 100))
    begin = time.monotonic()
    ids = drain(engine)
    assert time.monotonic() - begin >= 0.2
    assert len(ids) == 102
    assert ids[-1] == expected(tuple(map(ord, prompt)), 0, 1)


def test_a_die_directive_ends_the_process_at_its_token() -> None:
    code = (
        "from shared.protocol import SamplingParams\n"
        "from workers.engine.interface import EngineRequest\n"
        "from workers.scripted_engine import ScriptedEngine\n"
        "engine = ScriptedEngine()\n"
        "prompt = '[die 2] x'\n"
        "engine.add(EngineRequest('r', tuple(map(ord, prompt)), SamplingParams(max_tokens=5)))\n"
        "while True: print(len(engine.step()), flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert (done.returncode, done.stdout.split()) == (1, ["1", "1"])
