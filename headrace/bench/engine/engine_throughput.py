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
    """Output tokens/s of each run, by engine. A ratio is the median over the pairs."""

    rates: dict[str, list[float]]

    def ratio(self, peer: str) -> float:
        return statistics.median(a / b for a, b in zip(self.rates[OURS], self.rates[peer], strict=True))

    @property
    def peers(self) -> list[str]:
        return [name for name in self.rates if name != OURS]

    def as_dict(self) -> dict[str, Any]:
        return {"rates": self.rates, "ratios": {peer: self.ratio(peer) for peer in self.peers}}

    def table(self) -> Table:
        runs = range(1, len(self.rates[OURS]) + 1)
        table = Table("tokens/s", *(f"run {run}" for run in runs), "median", "ratio (pairs)")
        for name, rates in self.rates.items():
            ratio = "" if name == OURS else f"{self.ratio(name):.2f}"
            table.add_row(name, *(f"{rate:.1f}" for rate in rates), f"{statistics.median(rates):.1f}", ratio)
        return table


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
    rates: dict[str, list[float]] = {name: [] for name in (OURS, *(peer.name for peer in peers))}
    for number in range(repeats):
        console.print(f"run {number + 1} of {repeats}")
        ours = run_in_subprocess("headrace.bench.engine.peer_headrace", folder, seed, concurrency, quantization)
        rates[OURS].append(ours["rate"])
        for peer in peers:
            theirs = run_in_subprocess(peer.module, folder, seed, concurrency, *peer.arguments, python=peer.python)
            if theirs["tokens"] != ours["tokens"]:
                raise HeadraceError(
                    f"the engines did not do the same work: {ours['tokens']} tokens, {peer.name} {theirs['tokens']}"
                )
            rates[peer.name].append(theirs["rate"])
    return Comparison(rates)
