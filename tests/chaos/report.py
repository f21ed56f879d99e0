"""Report of a run of the chaos suite: one row for each case, with the command that repeats it."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.chaos.scale import Scale

MAX_FAILURE_CHARS = 300  # of a failure's message


@dataclass(frozen=True)
class Row:
    """One case: whether it held, and its figures."""

    name: str
    title: str
    held: bool
    figures: dict[str, float | str]
    failure: str
    seconds: float


@dataclass
class Report:
    scale: Scale
    rows: list[Row] = field(default_factory=list)
    started: float = field(default_factory=time.time)

    def write(self, path: Path) -> None:
        broken = sum(not row.held for row in self.rows)
        lines = [
            "# Chaos report",
            "",
            f"{len(self.rows) - broken} of {len(self.rows)} cases held, at {self.scale('short', 'full')} scale.",
            "",
            f"- date: {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(self.started))}",
            f"- machine: {os.cpu_count()} cores ({_processor()}), {psutil.virtual_memory().total / 2**30:.0f} GiB, "
            f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
            "",
            "| case | fault | held | figures | seconds | command |",
            "| --- | --- | --- | --- | --- | --- |",
            *(self._row(row) for row in self.rows),
            "",
        ]
        path.write_text("\n".join(lines), encoding="utf-8")

    def _row(self, row: Row) -> str:
        figures = [f"{name} {_formatted(value)}" for name, value in row.figures.items()]
        if not row.held:
            figures.append("**" + " ".join(row.failure.split())[:MAX_FAILURE_CHARS].replace("|", "/") + "**")
        held = "yes" if row.held else "**NO**"
        command = f"`scripts/chaos {self.scale('--short ', '')}{row.name}`"
        cells = [row.name, row.title, held, "; ".join(figures), f"{row.seconds:.0f}", command]
        return f"| {' | '.join(cells)} |"


def _formatted(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.3g}" if isinstance(value, float) and value < 1000 else f"{value:,.0f}".replace(",", " ")


def _processor() -> str:
    """Return the processor's model name, if the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
