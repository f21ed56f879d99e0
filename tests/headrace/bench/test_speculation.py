"""Speculation measured on a small scale, with a real model."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from headrace.bench.engine.drafting import tasks
from headrace.bench.engine.drafting.perfect_drafts import steps_of_copies
from headrace.bench.engine.speculation import measure_speculation


@pytest.mark.slow
def test_a_structured_answer_takes_fewer_steps(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "ANSWER_TOKENS", 24)
    found = measure_speculation(str(smollm2), ["schema"], [1], 1, Console(quiet=True), quantization="int8")
    [comparison] = found.comparisons
    [(off, on)] = comparison.pairs
    assert (off.tokens, off.drafted) == (on.tokens, 0)
    assert off.tokens == 48
    assert on.drafted >= on.accepted > 0
    assert comparison.ratios("steps")[0] > 1
    assert comparison.perfect > 0
    assert comparison.copied >= 1
    assert found.table().row_count == 1


def test_the_best_copies_are_counted() -> None:
    """The first token comes with the prompt; each step gives the tokens of a copy, and one more."""
    assert steps_of_copies([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 9], most=12, known=2) == 3
    assert steps_of_copies([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 9], most=12, known=1) == 2
    assert steps_of_copies([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 9], most=2, known=1) == 3
    assert steps_of_copies([1, 2], [7, 8, 9], most=12, known=0) == 3
    assert steps_of_copies([], [7, 7, 7, 7, 7], most=12, known=1) == 3
