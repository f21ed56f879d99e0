"""Batch benchmark on a small scale: both sides give every answer, and the figures are complete."""

from __future__ import annotations

import pytest
from rich.console import Console

from headrace.bench.kafka.batches import measure_batches

pytestmark = pytest.mark.slow


def test_both_sides_give_every_answer() -> None:
    found = measure_batches(100, 1, 1, Console(quiet=True)).as_dict()
    assert found["lines"] == 100
    [pair] = found["pairs"]
    assert pair["straight"]["seconds"] > 0.04  # a token takes a millisecond
    assert found["ratio"] == pytest.approx(pair["batch"]["seconds"] / pair["straight"]["seconds"])
    assert 0 < found["occupancy"] <= 1
