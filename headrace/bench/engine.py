"""`headrace bench engine`: the bare engine in pairs with peers on the same work, each in its own process."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from headrace.bench.side import run_side
from shared.errors import ConfigError

PEERS = ("hf", "none")


@dataclass(frozen=True)
class Comparison:
    """Output tokens/s of each run, in order; the ratio is the median over pairs."""

    peer: str
    ours: list[float]
    theirs: list[float]

    @property
    def ratio(self) -> float | None:
        if not self.theirs:
            return None
        return statistics.median(a / b for a, b in zip(self.ours, self.theirs, strict=True))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio}

    def table(self) -> Table:
        table = Table("run", "headrace tokens/s", f"{self.peer} tokens/s", "ratio")
        for number, ours in enumerate(self.ours):
            theirs = self.theirs[number] if self.theirs else None
            table.add_row(
                str(number + 1),
                f"{ours:.1f}",
                f"{theirs:.1f}" if theirs else "-",
                f"{ours / theirs:.2f}" if theirs else "-",
            )
        table.add_section()
        table.add_row(
            "median",
            f"{statistics.median(self.ours):.1f}",
            f"{statistics.median(self.theirs):.1f}" if self.theirs else "-",
            f"{self.ratio:.2f}" if self.ratio else "-",
        )
        return table


def measure_engine(model: str, against: str, repeats: int, seed: int, console: Console) -> Comparison:
    """Raises ConfigError for an unknown peer, HeadraceError where a run fails."""
    if against not in PEERS:
        raise ConfigError(f"--against is one of {', '.join(PEERS)}, not {against}")
    ours, theirs = [], []
    for number in range(repeats):
        console.print(f"run {number + 1} of {repeats}")
        ours.append(run_side("headrace.bench.bare", model, seed)["rate"])
        if against == "hf":
            theirs.append(run_side("headrace.bench.peer_hf", model, seed)["rate"])
    return Comparison(against, ours, theirs)
