"""`headrace bench predict`: figures of its pairs, and equal batches on both sides."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from headrace.bench.predict import direct
from headrace.bench.predict.comparison import Pair, Prediction
from headrace.bench.predict.repository import ADDER_FILE, write_adder


def pair(served: float, direct: float, single: float) -> Pair:
    return Pair(served=served, direct=direct, single=single, batch=8.0, latency=0.004, foreign=0.01)


def test_figures_are_medians_of_pairs() -> None:
    found = Prediction([pair(90, 100, 30), pair(80, 100, 20), pair(85, 100, 40)])
    assert (found.share, found.gain, found.latency) == (0.85, 3.0, 0.004)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(found.table())
    assert "85.0%" in shown.get()


def test_direct_side_executes_the_given_batches(tmp_path: Path, monkeypatch: object) -> None:
    """Given counts of batches by size, the loop executes these sizes in these proportions."""
    write_adder(tmp_path / "1")
    execute = direct.session(tmp_path / "1" / ADDER_FILE)
    assert execute(
        {
            "INPUT": direct.rows(4, 2, seed=0)["input_ids"].astype("float32"),
            "other": direct.rows(1, 1, 0)["input_ids"],
        }
    )
