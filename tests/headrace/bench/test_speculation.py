"""Speculation measured on a small scale, with a real model."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from headrace.bench.engine import drafting_tasks
from headrace.bench.engine.speculation import measure_speculation


@pytest.mark.slow
def test_a_structured_answer_takes_fewer_steps(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting_tasks, "ANSWER_TOKENS", 24)
    found = measure_speculation(str(smollm2), ["schema"], [1], 1, Console(quiet=True), quantization="int8")
    [comparison] = found.comparisons
    [(off, on)] = comparison.pairs
    assert (off.tokens, off.drafted) == (on.tokens, 0)
    assert off.tokens == 48
    assert on.drafted >= on.accepted > 0
    assert comparison.ratios("steps")[0] > 1
    assert found.table().row_count == 1
