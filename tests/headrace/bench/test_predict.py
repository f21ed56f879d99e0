"""`headrace bench predict`: figures of its pairs, and equal batches on both sides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from headrace.bench.predict import direct
from headrace.bench.predict.comparison import Pair, Prediction, Rates
from headrace.bench.predict.repository import write_adder


def pair(batched: float, single: float) -> Pair:
    dense = Rates(batched=4 * batched, single=batched)
    return Pair(Rates(batched, single), dense, direct=100, batch=8.0, latency=0.004, foreign=0.01)


def test_figures_are_medians_of_pairs() -> None:
    found = Prediction([pair(90, 30), pair(80, 20), pair(85, 40)])
    assert found.medians() == {"share": 0.85, "minilm_gain": 3.0, "dense_gain": 4.0, "latency": 0.004}
    console = Console(width=200)
    with console.capture() as shown:
        console.print(found.table())
    assert "85.0%" in shown.get()


def test_direct_side_executes_the_given_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given counts of batches by size, the loop executes these sizes in these proportions."""
    executed: list[int] = []
    monkeypatch.setattr(direct, "session", lambda graph: lambda inputs: executed.append(len(inputs["input_ids"])))
    times = iter([0.0, 0.0, 0.0, 0.0, 2.0])
    monkeypatch.setattr(direct.time, "perf_counter", lambda: next(times))

    found = direct.measure(Path("unused"), 4, {2: 3, 5: 1}, 1.0, seed=0)

    assert (sorted(executed[:2]), Counter(executed[2:])) == ([2, 5], Counter({2: 3, 5: 1}))
    assert found["rows_per_second"] == 11 / 2


def test_measured_model_adds(tmp_path: Path) -> None:
    write_adder(tmp_path / "adder.onnx")
    outputs = direct.session(tmp_path / "adder.onnx")({"INPUT": np.ones((2, 4), np.float32)})
    assert outputs["OUTPUT"].tolist() == [[2.0] * 4] * 2
