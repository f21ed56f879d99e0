"""Declaration of a metric: its name, what it measures, and its name in vLLM if it has one there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
PREFIX = "headrace_"

# Bounds of histograms, in seconds unless the name says otherwise.
FIRST_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5, 5, 10)
WHOLE_ANSWER = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
STEP = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
POWERS_OF_TWO = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)


@dataclass(frozen=True)
class VllmName:
    """Name of a metric in vLLM, with the labels `model_name` and `engine`; series that differ in others are added.

    Attributes:
        name: without the prefix `vllm:`, and without `_total`.
        buckets: bounds of vLLM's histogram.
        where: show only the series with these values of labels.
        keep: further labels that vLLM has too, with vLLM's name for each.
        constant: labels that vLLM has and this metric does not.
    """

    name: str
    buckets: tuple[float, ...] = ()
    where: Mapping[str, str] = field(default_factory=dict)
    keep: Mapping[str, str] = field(default_factory=dict)
    constant: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Declaration:
    """One metric of a kind of process.

    Attributes:
        name: without `_total`, which counters have in addition.
        labels: names of its labels; each has few values.
        buckets: upper bounds of a histogram.
    """

    kind: Kind
    name: str
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    vllm: tuple[VllmName, ...] = ()

    @property
    def exposed_name(self) -> str:
        """Return the name in PromQL; a histogram's series add `_bucket`, `_sum` and `_count`."""
        return self.name + "_total" * (self.kind == "counter")
