"""`headrace bench engine`: the engine alone against other engines on the same work, in turn, each in a process."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from headrace.bench.harness.subprocess_run import run_in_subprocess
from headrace.bench.peers.peers import find_peers
from shared.errors import HeadraceError
from shared.models.model_store import ModelRepository
from shared.settings import load

OURS = "headrace"


@dataclass(frozen=True)
class Comparison:
    """Figures of each run, by engine.

    Attributes:
        rates: output tokens/s of all requests.
        decode_rates: tokens/s of one answer after its first token, of the engines that report them.
    """

    rates: dict[str, list[float]]
    decode_rates: dict[str, list[float]]

    def as_dict(self) -> dict[str, Any]:
        return {
            "rates": self.rates,
            "ratios": _ratios(self.rates),
            "decode_rates": self.decode_rates,
            "decode_ratios": _ratios(self.decode_rates),
        }

    def table(self) -> Table:
        runs = range(1, len(self.rates[OURS]) + 1)
        table = Table("tokens/s", *(f"run {run}" for run in runs), "median", "ratio (pairs)")
        for kind, figures in (("", self.rates), (", one answer after its first token", self.decode_rates)):
            ratios = {OURS: "", **{peer: f"{ratio:.2f}" for peer, ratio in _ratios(figures).items()}}
            for name, rates in figures.items():
                cells = (*rates, statistics.median(rates))
                table.add_row(f"{name}{kind}", *(f"{rate:.1f}" for rate in cells), ratios[name])
            table.add_section()
        return table


def _ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Return Headrace's figure over that of each peer: the median over the pairs."""
    ours = rates[OURS]
    return {
        peer: statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        for peer, theirs in rates.items()
        if peer != OURS
    }


def measure_engine(
    model: str, against: str, repeats: int, seed: int, console: Console, *, quantization: str, concurrency: int
) -> Comparison:
    """Measure `repeats` runs of each engine.

    Raises ConfigError for an unknown peer, HeadraceError if a run fails or the numbers of tokens differ.
    """
    peers, missing = find_peers(against)
    for name in missing:
        console.print(f"skipping {name}, which is not installed; to install it, run scripts/peers {name}")
    folder = str(ModelRepository(load({"model": model}).settings).folder())
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (OURS, *(peer.name for peer in peers))}
    for number in range(repeats):
        console.print(f"run {number + 1} of {repeats}")
        ours = run_in_subprocess("headrace.bench.engine.peer_headrace", folder, seed, concurrency, quantization)
        runs[OURS].append(ours)
        for peer in peers:
            theirs = run_in_subprocess(peer.module, folder, seed, concurrency, *peer.arguments, python=peer.python)
            if theirs["tokens"] != ours["tokens"]:
                raise HeadraceError(
                    f"the engines did not do the same work: {ours['tokens']} tokens, {peer.name} {theirs['tokens']}"
                )
            runs[peer.name].append(theirs)
    return Comparison(
        {name: [run["rate"] for run in found] for name, found in runs.items()},
        {name: [run["decode_rate"] for run in found] for name, found in runs.items() if "decode_rate" in found[0]},
    )
