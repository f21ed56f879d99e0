"""Statistics of the samples of a run, as a table or JSON."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from headrace.bench.harness.timed_stream import Sample
from shared.errors import HeadraceError


@dataclass(frozen=True)
class Spread:
    """Percentiles of durations, in seconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def from_values(cls, values: Sequence[float]) -> Spread:
        ordered = sorted(values)
        return cls(*(percentile(ordered, share) for share in (0.50, 0.95, 0.99)))


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile: the least value that `share` of all do not exceed; nan if empty."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True)
class Report:
    """Statistics of one run. Token counts are the server's; a failed request counts only under `errors`.

    `events`: events with text; each holds one or more tokens.
    `interrupted`: the run was stopped; requests in flight at that time are not counted anywhere.
    """

    requests: int
    errors: dict[str, int]
    seconds: float
    output_tokens: int
    events: int
    output_tokens_per_second: float
    requests_per_second: float
    ttft: Spread
    inter_token: Spread
    end_to_end: Spread
    interrupted: bool

    @classmethod
    def from_samples(cls, samples: Sequence[Sample], seconds: float, *, interrupted: bool = False) -> Report:
        good = [sample for sample in samples if sample.error is None]
        tokens = sum(sample.output_tokens for sample in good)
        return cls(
            requests=len(samples),
            errors=dict(Counter(sample.error for sample in samples if sample.error is not None)),
            seconds=seconds,
            output_tokens=tokens,
            events=sum(len(sample.arrivals) for sample in good),
            output_tokens_per_second=tokens / seconds if seconds else 0.0,
            requests_per_second=len(good) / seconds if seconds else 0.0,
            ttft=Spread.from_values([sample.arrivals[0] - sample.scheduled for sample in good if sample.arrivals]),
            inter_token=Spread.from_values([gap for sample in good for gap in sample.gaps]),
            end_to_end=Spread.from_values([sample.ended - sample.scheduled for sample in good]),
            interrupted=interrupted,
        )

    def as_dict(self) -> dict[str, object]:
        """Return the report for JSON, with null for nan: a figure without samples."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}

    def table(self, title: str) -> Table:
        table = Table("", "p50", "p95", "p99", title=title, title_justify="left")
        for name, spread in (
            ("time to first token", self.ttft),
            ("between tokens", self.inter_token),
            ("end to end", self.end_to_end),
        ):
            table.add_row(name, *(_milliseconds(value) for value in (spread.p50, spread.p95, spread.p99)))
        table.caption = (
            f"{self.requests} requests in {self.seconds:.1f} s: {self.output_tokens_per_second:.1f} output tokens/s"
            f", {self.requests_per_second:.2f} requests/s; errors: {self.errors or 'none'}"
            f"{'; interrupted' if self.interrupted else ''}"
        )
        table.caption_justify = "left"
        return table


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _milliseconds(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{seconds * 1000:,.1f} ms"


def decode_rate(tokens: int, seconds: float) -> float | None:
    """Return the tokens/s of one answer while it is decoded, or None if no answer has several tokens.

    Args:
        tokens: output tokens of all answers, without the first of each.
        seconds: from the first token of an answer to its last, of all answers.
    """
    return tokens / seconds if tokens else None


@dataclass(frozen=True)
class EngineOnlyRun:
    """Run of one side: the mix, and single requests. `waits` are their times to the first token, in seconds."""

    tokens: int
    rate: float
    waits: list[float]
    foreign: float

    @property
    def ttft(self) -> float:
        return statistics.median(self.waits)


def require_complete(report: Report) -> None:
    """Raise HeadraceError if requests failed, KeyboardInterrupt if the run was stopped."""
    if report.interrupted:
        raise KeyboardInterrupt
    if report.errors:
        raise HeadraceError(f"requests failed, so the runs cannot be compared: {report.errors}")
