"""`headrace sim`: simulations of an installation. Each command imports its model when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.bench.options import names_of, report
from headrace.cli.options import Json, stderr
from shared.errors import ConfigError

if TYPE_CHECKING:
    from headrace.sim.arrivals import Arrival
    from headrace.sim.comparison import Comparison

app = typer.Typer(no_args_is_help=True, help="Simulations that are fed by measured times.")

DAY_S = 86_400.0
ALL = "fixed,hpa-utilization,hpa-queue,hpa-both,keda"


@app.callback()
def simulations() -> None:
    """Keep `autoscale` a command of the group, although it is the only one."""


@app.command()
def autoscale(
    policies: Annotated[str, typer.Option(help=f"Comma-separated: {ALL}.")] = ALL,
    requests: Annotated[
        float, typer.Option(min=1, max=20_000_000, help="Requests of the day, without bursts.")
    ] = 300_000,
    bursts: Annotated[
        int, typer.Option(min=0, max=1000, help="Bursts of ten minutes at three times the load.")
    ] = 6,
    arrivals: Annotated[
        Path | None, typer.Option(help="CSV file of arrivals instead: at_s,prompt_tokens,answer_tokens.")
    ] = None,
    step_times: Annotated[
        Path | None,
        typer.Option(help="Measured times: JSON of `bench batching --parts steps`; default: SmolLM2 on two cores."),
    ] = None,
    seats: Annotated[int, typer.Option(min=1, max=4096, help="Requests that a worker computes at a time.")] = 32,
    cold_start: Annotated[
        float, typer.Option(min=0, max=DAY_S, help="Seconds until a new worker takes requests.")
    ] = 60.0,
    least: Annotated[int, typer.Option("--min", min=1, help="Fewest workers of the HPAs.")] = 2,
    most: Annotated[int, typer.Option("--max", min=1, max=1000, help="Most workers.")] = 10,
    utilization: Annotated[float, typer.Option(min=1, max=100, help="Target of the HPA, in percent.")] = 80.0,
    queue: Annotated[
        float, typer.Option(min=0.1, max=1e6, help="Target of the HPA: waiting requests per worker.")
    ] = 10.0,
    keda: Annotated[
        float, typer.Option(min=0.1, max=1e6, help="Target of KEDA: waiting and held requests per worker.")
    ] = 24.0,
    ttft_target: Annotated[
        float, typer.Option(min=0.001, max=DAY_S, help="First token within so many seconds.")
    ] = 5.0,
    plot: Annotated[Path | None, typer.Option(help="File for a plot over the day, as SVG.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of arrivals, lengths and bursts.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare autoscalers over a day: cost, waits, first tokens and the share of them that meets a target."""
    from headrace.sim.comparison import POLICIES, Targets, compare
    from headrace.sim.simulation import Machine
    from headrace.sim.step_times import SMOLLM2, StepTimes

    if least > most:
        raise ConfigError(f"--min must be at most --max, {most}, got {least}")
    chosen = names_of("--policies", policies, POLICIES)
    machine = Machine(SMOLLM2 if step_times is None else StepTimes.read(step_times), seats, cold_start)
    load = _load(arrivals, requests, bursts, seed)
    with stderr.status(f"simulating {len(load):,} requests"):
        found = compare(load, machine, Targets(least, most, utilization, queue, keda), chosen, ttft_target)
    if plot is not None:
        _write_plot(plot, found)
    report(found, as_json)


def _load(file: Path | None, requests: float, bursts: int, seed: int) -> list[Arrival]:
    """Return the arrivals of a file or, without one, of a day. Raises ConfigError."""
    from headrace.sim.arrivals import Day, read_csv

    found = list(Day(requests, bursts=bursts).arrivals(seed)) if file is None else read_csv(file)
    if not found:
        raise ConfigError(f"--requests {requests:g} makes a day without requests with this --seed; choose more")
    return found


def _write_plot(plot: Path, found: Comparison) -> None:
    from headrace.sim.plot import svg

    try:
        plot.write_text(svg(found))
    except OSError as error:
        raise ConfigError(f"--plot {plot} cannot be written: {error.strerror}") from error
