"""`scripts/check-sim`: the same arrivals through real processes and through `headrace.sim`, side by side.

The real side is an API, Redis and workers of the scripted engine, which takes a fixed time per token. The
simulation gets the measured time per token and, with an autoscaler, the measured time of a worker's start.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from headrace.bench.harness.report import percentile
from headrace.sim.arrivals import Arrival, Lengths, stationary
from headrace.sim.autoscaler import Autoscaler, Fixed
from headrace.sim.comparison import Comparison
from headrace.sim.hpa import AverageQueue, Hpa
from headrace.sim.keda import Keda
from headrace.sim.outcome import Outcome
from headrace.sim.plot import svg
from headrace.sim.simulation import Machine, Simulation
from headrace.sim.step_times import StepTimes
from shared.backend import Backend
from shared.settings import load
from tests.simulation.fleet import MODEL, Fleet
from tests.support.cluster import running
from tests.support.stream_client import Answer, Client

POLICIES = ("fixed", "hpa-queue", "keda")
LENGTHS = Lengths(answer_mean=40.0)
TTFT_TARGET_S = 5.0


@dataclass(frozen=True)
class Measured:
    """A real run: its outcome, and the times that the simulation needs."""

    outcome: Outcome
    token_s: float
    cold_start_s: float


def autoscaler(options: argparse.Namespace) -> Autoscaler:
    """Return a new autoscaler; its targets are smaller than those of `headrace sim`, as the run is."""
    if options.policy == "fixed":
        return Fixed(options.workers)
    if options.policy == "keda":
        return Keda(float(options.seats), options.workers)
    return Hpa([AverageQueue(1.0)], least=1, most=options.workers)


async def send(client: Client, arrival: Arrival, began: float, number: int, pace: int) -> Answer:
    """Send a request at its time, and read its answer. `submitted` is when it should have been sent."""
    due = began + arrival.at
    await asyncio.sleep(max(0.0, due - time.monotonic()))
    answer = await client.submit(f"[pace {pace}] request {number}", arrival.answer_tokens)
    answer.submitted = due
    await client.follow(answer)
    answer.verify()
    return answer


async def measure(folder: Path, arrivals: Sequence[Arrival], options: argparse.Namespace) -> Measured:
    """Run real processes. Raises Violated if an answer is not complete."""
    outcome = Outcome(arrived=len(arrivals))
    settings = {"max_num_seqs": options.seats, "grace": 60, "lease": 3, "scalable_models": MODEL}
    async with running(folder, apis=1, workers=0, **settings) as cluster:
        backend = Backend.open(load({"redis_url": cluster.store.url}).settings)
        await backend.start()
        try:
            fleet = Fleet(cluster, backend, autoscaler(options), outcome)
            async with fleet.scaled():
                began = time.monotonic()
                sent = [send(cluster.client, each, began, i, options.pace) for i, each in enumerate(arrivals)]
                answers = await asyncio.gather(*sent)
        finally:
            await backend.close()
    outcome.first_tokens = [answer.first_token for answer in answers]
    outcome.totals = [answer.arrivals[-1] - answer.submitted for answer in answers]
    gaps = [stall for answer in answers for stall in answer.stalls]
    cold_start = statistics.mean(fleet.cold_starts) if fleet.cold_starts else 0.0
    return Measured(outcome, statistics.mean(gaps), cold_start)


def simulate(arrivals: Sequence[Arrival], found: Measured, options: argparse.Namespace) -> Outcome:
    times = StepTimes(dict.fromkeys(range(1, options.seats + 1), found.token_s), prompt_token_s=0.0)
    machine = Machine(times, seats=options.seats, cold_start_s=found.cold_start_s)
    return Simulation(arrivals, machine, autoscaler(options)).run()


def figures(outcome: Outcome) -> dict[str, str]:
    """Return the compared figures of an outcome, by name."""
    rows = {}
    for name, values in (("first token", sorted(outcome.first_tokens)), ("whole answer", sorted(outcome.totals))):
        rows[f"{name}, mean"] = f"{statistics.mean(values):.3f} s"
        shares = " / ".join(f"{percentile(values, share):.3f}" for share in (0.5, 0.9, 0.99))
        rows[f"{name}, p50 / p90 / p99"] = f"{shares} s"
    oldest = max((sample.oldest_age for sample in outcome.samples), default=0.0)
    rows["age of the oldest at a sync, most"] = f"{oldest:.2f} s"
    rows["workers started"] = str(outcome.started)
    rows["time of workers"] = f"{outcome.worker_seconds:.0f} s"
    return rows


def show(found: Measured, simulated: Outcome) -> None:
    table = Table(f"{found.outcome.arrived} requests", "measured", "simulated")
    other = figures(simulated)
    for name, value in figures(found.outcome).items():
        table.add_row(name, value, other[name])
    console = Console()
    console.print(table)
    console.print(f"measured: {found.token_s * 1000:.1f} ms per token, {found.cold_start_s:.1f} s for a start")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/check-sim", description=__doc__)
    parser.add_argument("--policy", choices=POLICIES, default="fixed", help="autoscaler (fixed)")
    parser.add_argument("--rate", type=float, default=3.6, help="requests per second (3.6)")
    parser.add_argument("--seconds", type=float, default=25.0, help="during which requests arrive (25)")
    parser.add_argument("--workers", type=int, default=2, help="number of workers, or the most of them (2)")
    parser.add_argument("--seats", type=int, default=2, help="requests that a worker computes at a time (2)")
    parser.add_argument("--pace", type=int, default=20, help="milliseconds per token (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals (0)")
    parser.add_argument("--plot", type=Path, help="SVG file for a plot of both runs")
    options = parser.parse_args()
    arrivals = list(stationary(options.rate, options.seconds, options.seed, LENGTHS))
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(Path(folder), arrivals, options))
    simulated = simulate(arrivals, found, options)
    show(found, simulated)
    if options.plot is not None:
        outcomes = {"measured": found.outcome, "simulated": simulated}
        options.plot.write_text(svg(Comparison(len(arrivals), TTFT_TARGET_S, outcomes)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
