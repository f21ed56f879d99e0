"""Figures and plot of the batching benchmark, from hand-made runs and the scripted engine."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from rich.console import Console

from headrace.bench.engine import batching
from headrace.bench.engine.batching import POLICIES, Batching, Pair, measure_waiting
from headrace.bench.engine.batching_report import svg, tables
from headrace.bench.engine.engine_driver import EngineDriver
from headrace.bench.harness.report import Report
from headrace.bench.harness.timed_stream import Sample
from shared.protocol import SamplingParams
from workers.engine.interface import EngineRequest
from workers.scripted_engine import ScriptedEngine


def report(rate: float) -> Report:
    """Return the report of one request with 10 tokens, at `rate` tokens/s."""
    gap = 1 / rate
    sample = Sample(0.0, [gap * i for i in range(1, 11)], ended=10 * gap, output_tokens=10)
    return Report.from_samples([sample], 10 * gap)


@pytest.fixture
def found() -> Batching:
    rates = {"continuous": [90.0, 100.0, 110.0], "dynamic": [60.0, 50.0, 44.0], "static": [30.0, 25.0, 22.0]}
    policies = {name: [report(rate) for rate in rates[name]] for name in POLICIES}
    return Batching(policies, 32, stall=Pair([0.1, 0.1], [0.15, 0.25]), waiting=Pair([1.0], [1.02]))


def test_ratios_are_medians_over_pairs(found: Batching) -> None:
    assert found.gain("dynamic") == pytest.approx(2.0)
    assert found.gain("static") == pytest.approx(4.0)
    figures = json.loads(json.dumps(found.as_dict()))
    assert figures["stall"]["ratio"] == pytest.approx(2.0)
    assert figures["prefix"] is None
    assert figures["gain"] == {"dynamic": pytest.approx(2.0), "static": pytest.approx(4.0)}


def test_tables_show_only_the_measured_parts(found: Batching) -> None:
    console = Console(width=200, record=True, quiet=False, file=None)
    with console.capture() as capture:
        for table in tables(found):
            console.print(table)
    text = capture.get()
    assert "4.00 ×" in text
    assert "prompt of 4000, budget 32" in text
    assert "prefix cache" not in text


def test_the_plot_has_a_bar_for_each_figure_and_policy(found: Batching) -> None:
    root = ElementTree.fromstring(svg(found))
    space = "{http://www.w3.org/2000/svg}"
    bars = [bar for bar in root.iter(f"{space}rect") if bar.get("x")]
    assert len(bars) == 12
    widths = [float(bar.get("width") or 0) for bar in bars[:3]]
    assert widths[0] == pytest.approx(2 * widths[1]) == pytest.approx(4 * widths[2])


def test_a_closed_loop_keeps_its_concurrency() -> None:
    engine = ScriptedEngine()
    driver = EngineDriver(engine)
    most = 0
    step = engine.step

    def watched():
        nonlocal most
        most = max(most, len(engine._runs))
        return step()

    engine.step = watched
    driver.closed_loop((EngineRequest(str(i), (1, 2), SamplingParams(max_tokens=i + 1)) for i in range(6)), 3)
    assert most == 3
    assert [sample.output_tokens for sample in driver.samples.values()] == [1, 2, 3, 4, 5, 6]
    assert all(sample.ended >= sample.arrivals[-1] for sample in driver.samples.values())


def test_the_waiting_part_has_as_many_waiting_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "WAITING_STEPS", 3)
    for waiting in batching.WAITING_SEQUENCES:
        scheduler = batching._full_scheduler(waiting)
        assert len(scheduler.running) == batching.CONCURRENCY
        assert scheduler.num_waiting == waiting
    few, many = measure_waiting()
    assert few > 0
    assert many > 0


def test_the_steps_part_times_one_stream_and_a_full_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, running = ScriptedEngine(), []
    step = engine.step

    def watched():
        running.append(len(engine._runs))
        return step()

    engine.step = watched
    monkeypatch.setattr(batching, "load_engine", lambda model, **settings: engine)
    one, full = batching.measure_steps("any", 0)
    assert one > 0
    assert full > 0
    assert running.count(1) >= batching.STEPS
    assert running.count(batching.CONCURRENCY) >= batching.STEPS
