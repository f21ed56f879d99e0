"""`headrace bench overhead`: the same work on the bare engine and through the whole path, in pairs.

The bare engine runs in a process of its own with the concurrency that the clients have; the whole path is
`headrace up` with a fresh data folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from headrace.bench.load import Target
from headrace.bench.mix import WorkItem, make_mix
from headrace.bench.report import Report
from headrace.bench.serve import Load, measure
from headrace.up import claim_port
from shared.errors import HeadraceError
from shared.repository import ModelRepository

CONCURRENCY = 32
ALONE = 24  # requests sent one by one, for the time to the first token
START_LIMIT = 300.0


@dataclass(frozen=True)
class Pair:
    """One run of each; rates in output tokens/s, times in seconds."""

    bare_rate: float
    queue_rate: float
    bare_ttft: float
    queue_ttft: float
    api_rss_mib: float


@dataclass(frozen=True)
class Overhead:
    """All pairs, and the medians over them."""

    pairs: list[Pair]

    @property
    def rate_ratio(self) -> float:
        return statistics.median(pair.queue_rate / pair.bare_rate for pair in self.pairs)

    @property
    def added_ttft(self) -> float:
        return statistics.median(pair.queue_ttft - pair.bare_ttft for pair in self.pairs)

    @property
    def api_rss_mib(self) -> float:
        return statistics.median(pair.api_rss_mib for pair in self.pairs)

    def as_dict(self) -> dict[str, Any]:
        return {
            "pairs": [asdict(pair) for pair in self.pairs],
            "rate_ratio": self.rate_ratio,
            "added_ttft": self.added_ttft,
            "api_rss_mib": self.api_rss_mib,
        }

    def table(self) -> Table:
        table = Table(
            "pair", "bare tokens/s", "queue tokens/s", "ratio", "bare TTFT", "queue TTFT", "added", "API MiB"
        )
        for number, pair in enumerate(self.pairs, 1):
            table.add_row(
                str(number),
                f"{pair.bare_rate:.1f}",
                f"{pair.queue_rate:.1f}",
                f"{pair.queue_rate / pair.bare_rate:.3f}",
                f"{pair.bare_ttft * 1000:.1f} ms",
                f"{pair.queue_ttft * 1000:.1f} ms",
                f"{(pair.queue_ttft - pair.bare_ttft) * 1000:.1f} ms",
                f"{pair.api_rss_mib:.0f}",
            )
        table.add_section()
        table.add_row(
            "median", "", "", f"{self.rate_ratio:.3f}", "", "", f"{self.added_ttft * 1000:.1f} ms",
            f"{self.api_rss_mib:.0f}",
        )  # fmt: skip
        return table


def measure_overhead(model: str, repeats: int, seed: int, console: Console) -> Overhead:
    """Raises HeadraceError where a side cannot be started or a request fails."""
    pairs = []
    for number in range(repeats):
        console.print(f"pair {number + 1} of {repeats}: the bare engine")
        bare = _bare(model, seed)
        console.print(f"pair {number + 1} of {repeats}: through the queue")
        pairs.append(_pair(bare, model, seed, console))
    return Overhead(pairs)


def _bare(model: str, seed: int) -> dict[str, float]:
    command = [sys.executable, "-m", "headrace.bench.bare", model, str(seed)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HeadraceError(f"the bare engine failed: {(done.stderr.strip().splitlines() or ['silently'])[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _pair(bare: dict[str, float], model: str, seed: int, console: Console) -> Pair:
    with _whole_path(model, console) as (url, supervisor):
        rss = _api_rss_mib(supervisor)
        target = Target(url, _served_name(model), {"ignore_eos": True})
        full = asyncio.run(measure(target, make_mix(seed), Load(CONCURRENCY, seed=seed), console))
        alone = asyncio.run(measure(target, alone_mix(seed), Load(1, seed=seed), console))
    _refuse_errors(full, alone)
    return Pair(bare["rate"], full.output_tokens_per_second, bare["ttft"], alone.ttft.p50, rss)


def _served_name(model: str) -> str:
    from shared.config import load

    return ModelRepository(load({"model": model}).settings).served_name


def alone_mix(seed: int) -> list[WorkItem]:
    """Requests for the time to the first token: the usual prompts, two tokens of answer."""
    return [WorkItem(item.prompt, item.prompt_tokens, 2) for item in make_mix(seed + 1, ALONE)]


def _refuse_errors(*reports: Report) -> None:
    for report in reports:
        if report.errors:
            raise HeadraceError(f"requests failed, so there is nothing to compare: {report.errors}")


@contextlib.contextmanager
def _whole_path(model: str, console: Console) -> Iterator[tuple[str, int]]:
    """`headrace up`, ready; its address and process id."""
    port = claim_port("127.0.0.1", 0)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        command = [sys.executable, "-m", "headrace", "up", "--port", str(port), "--model", model]
        log = Path(folder) / "up.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--data-dir", folder],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "HEADRACE_LOG_LEVEL": "warning"},
            )
        try:
            _await_ready(process, log, console)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def _await_ready(process: subprocess.Popen[bytes], log: Path, console: Console) -> None:
    import time

    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline and process.poll() is None:
        if re.search(rb"^ready: ", log.read_bytes(), re.MULTILINE):
            return
        time.sleep(0.1)
    raise HeadraceError(f"headrace up did not become ready: {log.read_text()[-500:]}")


def _api_rss_mib(supervisor: int) -> float:
    """Memory of the idle API process."""
    for child in psutil.Process(supervisor).children():
        if "api" in child.cmdline():
            rss: int = child.memory_info().rss
            return rss / 2**20
    raise HeadraceError("there is no API process")
