"""Figures of the gateway benchmark's pairs."""

from __future__ import annotations

import pytest
from rich.console import Console

from headrace.bench.gateway.added_latency import GatewayCost, Pair, Run
from headrace.bench.harness.report import Spread


def run(p50: float, p99: float, request: float, token: float) -> Run:
    return Run(Spread(p50, p99, p99), request, token)


def test_medians_are_of_the_differences_of_pairs() -> None:
    pairs = [
        Pair(run(0.010, 0.05, 0.001, 4e-5), run(0.011, 0.06, 0.0015, 5e-5), 0.0),
        Pair(run(0.020, 0.09, 0.001, 4e-5), run(0.022, 0.08, 0.0016, 5e-5), 0.0),
        Pair(run(0.030, 0.07, 0.001, 4e-5), run(0.039, 0.09, 0.0017, 3e-5), 0.0),
    ]
    cost = GatewayCost(300.0, pairs)
    found = cost.as_dict()
    assert found["added_p50"] == pytest.approx(0.002)
    assert found["added_p99"] == pytest.approx(0.01)
    assert found["added_cpu_request"] == pytest.approx(0.0006)
    assert (found["cpu_token"], found["cpu_token_without"]) == (5e-5, 4e-5)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(cost.table())
    assert "2.00 ms" in shown.get()
