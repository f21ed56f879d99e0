"""Routing benchmark: the time of simulated engines, the loads, tiny runs, and the report of hand-made ones."""

from __future__ import annotations

import io
import json
from itertools import islice
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from headrace.bench.harness.report import Spread
from headrace.bench.routing import comparison, sessions, simulated_engine
from headrace.bench.routing.clients import Throughput, measure_throughput
from headrace.bench.routing.comparison import POLICIES, Routing
from headrace.bench.routing.fleet import Fleet, running_fleet
from headrace.bench.routing.queue_cost import QueueCost
from headrace.bench.routing.report import svg, tables
from headrace.bench.routing.simulated_engine import BLOCK_SIZE, TOKEN_BYTES, Device, SimulatedEngine
from headrace.bench.routing.workload import INSTRUCTION_TOKENS, INSTRUCTIONS, LOADS, TURNS
from headrace.cli.bench import server
from headrace.cli.main import app
from shared.protocol import Message, SamplingParams
from shared.settings import Settings
from tests.support.typer_internals import CliRunner
from tests.support.worker_harness import wait_until
from workers.engine.interface import EngineRequest

INSTANT = Device(step_s=0, row_s=0, prompt_token_s=0)


class Clock:
    """Clock that passes only while something sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(simulated_engine, "time", clock)
    return clock


def answer(engine: SimulatedEngine, name: str, prompt: list[int], max_tokens: int = 1) -> list[int]:
    """Run one request to its end, and return its tokens."""
    engine.add(EngineRequest(name, tuple(prompt), SamplingParams(max_tokens=max_tokens)))
    tokens = []
    while engine.has_work():
        tokens += [token.id for output in engine.step() for token in output.tokens]
    return tokens


def test_a_step_takes_the_time_of_its_tokens(clock: Clock) -> None:
    engine = SimulatedEngine(Device(step_s=1, row_s=0.25, prompt_token_s=0.5, speed=2, step_tokens=8))
    answer(engine, "a", [1] * 12, max_tokens=3)
    prompt = [(1 + 8 * 0.5) / 2, (1 + 4 * 0.5) / 2]
    assert clock.now == pytest.approx(sum(prompt) + 2 * (1 + 0.25) / 2)


def test_a_device_does_not_wait_for_a_late_process(clock: Clock) -> None:
    engine = SimulatedEngine(Device(step_s=1, row_s=0, prompt_token_s=0))
    engine.add(EngineRequest("a", (1,), SamplingParams(max_tokens=3)))
    engine.step()
    clock.now += 0.75  # the process is late
    engine.step()
    assert clock.now == 2
    engine.step()
    clock.now += 10  # the device is idle
    answer(engine, "b", [1])
    assert clock.now == 14


def test_a_cached_prefix_takes_no_time(clock: Clock) -> None:
    engine = SimulatedEngine(Device(step_s=0, row_s=0, prompt_token_s=1))
    prompt = [5] * (2 * BLOCK_SIZE)
    answer(engine, "a", prompt)
    assert clock.now == 32
    answer(engine, "b", [*prompt, 6])
    assert clock.now == 33
    assert (engine.counts().requests, engine.counts().prefix_hits) == (2, 32)


def test_an_answer_is_found_in_the_next_prompt_of_its_chat(clock: Clock) -> None:
    engine = SimulatedEngine(INSTANT)
    chat = [Message("user", "x" * 399)]  # a part of a token is left
    text = engine.tokenizer.decode_all(answer(engine, "a", engine.tokenizer.encode_chat(chat), BLOCK_SIZE * 4))
    chat += [Message("assistant", text), Message("user", "y")]
    answer(engine, "b", engine.tokenizer.encode_chat(chat))
    assert engine.counts().prefix_hits > 100 + BLOCK_SIZE * 2


def test_a_resumed_answer_continues_as_if_undisturbed(clock: Clock) -> None:
    whole = answer(SimulatedEngine(INSTANT), "a", [1, 2, 3], max_tokens=6)
    engine = SimulatedEngine(INSTANT)
    engine.add(EngineRequest("a", (1, 2, 3), SamplingParams(max_tokens=6), resumed=(tuple(whole[:4]),)))
    rest = [token.id for _ in range(2) for output in engine.step() for token in output.tokens]
    assert whole[:4] + rest == whole
    assert not engine.has_work()


@pytest.mark.parametrize("load", LOADS)
def test_a_load_depends_on_its_seed_alone(load: str) -> None:
    first, again, other = (list(islice(LOADS[load](seed), 20)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len({session.user for session in first}) == 20


def test_loads_differ_in_lengths_and_shared_text() -> None:
    found = {name: list(islice(load(1), 50)) for name, load in LOADS.items()}
    answers = {name: [session.turns[0].answer_tokens for session in each] for name, each in found.items()}
    assert max(answers["uniform"]) < 2 * min(answers["uniform"])
    assert max(answers["skewed"]) > 20 * min(answers["skewed"])
    assert all(len(session.turns) == TURNS for session in found["multi-turn"])
    instructions = {session.instructions for session in found["multi-turn"]}
    assert len(instructions) == INSTRUCTIONS
    assert {len(text) for text in instructions} == {INSTRUCTION_TOKENS * TOKEN_BYTES}


def _begun(fleet: Fleet) -> int:
    return sum(counts.requests for counts in fleet.counts().values())


async def test_throughput_is_measured_on_real_workers(settings: Settings) -> None:
    async with running_fleet(settings.model_copy(update={"grace": 0})) as fleet:
        await fleet.add(INSTANT)
        await fleet.add(INSTANT)

        async def until_more_began(requests: float) -> None:
            begun = _begun(fleet)
            await wait_until(lambda: _begun(fleet) >= begun + requests)

        found = await measure_throughput(
            fleet, LOADS["multi-turn"](0), clients=2, warmup_s=2, seconds=10, sleep=until_more_began
        )
    assert found.tokens_per_s > 0
    assert 0 < found.cached < 1
    assert set(found.requests) == {"worker-1", "worker-2"}
    assert sum(found.requests.values()) >= 10


async def test_moved_sessions_are_those_on_another_worker(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "SESSIONS", 8)
    monkeypatch.setattr(sessions, "NOTICED_S", 0)
    async with running_fleet(settings.model_copy(update={"grace": 0})) as fleet:
        await fleet.add(INSTANT)
        moved = await sessions.measure_moved(fleet, LOADS["uniform"](0), INSTANT)
        ran_on = list(fleet.workers_of_jobs().values())
    assert len(ran_on) == 16
    assert moved == ran_on.count("worker-2") / 8


@pytest.fixture
def found() -> Routing:
    """Results in which each policy is a tenth faster than the one before, with three seeds."""

    def run(rate: float) -> Throughput:
        return Throughput(rate, Spread(0.1, 0.2, 0.3), 0.5, {})

    rates: dict[str, float] = {policy: 1000 + 100 * number for number, policy in enumerate(POLICIES)}
    runs = {policy: [run(rate), run(rate * 2), run(rate * 3)] for policy, rate in rates.items()}
    return Routing(
        runs=dict.fromkeys(LOADS, runs),
        moved=[0.19, 0.22, 0.23],
        ratios={"set": [2.9, 2.8, 3.05], "measured": [3.2]},
        added={policy: QueueCost(0.0002, 0.0001) for policy in POLICIES[1:]},
        api_mib=90.0,
    )


def test_gains_are_medians_over_seeds(found: Routing) -> None:
    assert found.gain("uniform", "prefix-aware") == pytest.approx(1.6)
    assert found.gain("uniform", "prefix-aware", "round-robin") == pytest.approx(16 / 11)
    assert json.loads(json.dumps(found.as_dict()))["gains"]["skewed"]["pull"] == 1


@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_fit_the_terminal(found: Routing, width: int) -> None:
    console = Console(width=width, file=io.StringIO(), record=True)
    for table in tables(found):
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert "weighted-round-robin" in text
    assert "1 : 2.90" in text
    assert "22.0%" in text


def test_the_plot_has_a_bar_for_each_load_and_policy(found: Routing) -> None:
    space = "{http://www.w3.org/2000/svg}"
    bars = [bar for bar in ElementTree.fromstring(svg(found)).iter(f"{space}rect") if bar.get("x")]
    assert len(bars) == len(LOADS) * len(POLICIES)
    widths = [float(bar.get("width") or 0) for bar in bars[: len(POLICIES)]]
    assert widths[-1] == pytest.approx(1.6 * widths[0], rel=0.01)


def test_all_policies_are_compared_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[Any] = []
    monkeypatch.setattr(comparison, "measure_routing", lambda policies, *_: compared.extend(policies))
    monkeypatch.setattr(server, "report_tables", lambda *_: None)
    assert CliRunner().invoke(app, ["bench", "routing"]).exit_code == 0
    assert compared == list(POLICIES)


def test_an_unknown_policy_is_refused() -> None:
    result = CliRunner().invoke(app, ["bench", "routing", "--policies", "pull,fastest"])
    assert result.exit_code != 0
    assert "--policies must be a list of pull, round-robin" in str(result.exception)
