"""A step abandoned between two layers can be run again with the same result."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
import torch

from shared.protocol import SamplingParams
from tests.support.engine_driver import drain, load
from workers.engine.interface import EngineRequest
from workers.engine.kernels import cpp_layers
from workers.engine.scheduling.scheduled_batch import ScheduledBatch


@pytest.mark.parametrize("cache_dir", [{}, {"cache_dir": None}], ids=["C++", "torch"])
def test_interrupted_step_can_be_run_again(
    llama: Path, monkeypatch: pytest.MonkeyPatch, cache_dir: dict[str, None]
) -> None:
    """Given forked choices and chunks, and every step abandoned before each of its layers, answers are the same."""
    monkeypatch.setattr(cpp_layers, "MULTIPLY_ADDS_AT_ONCE", 1)
    params = SamplingParams(temperature=1.0, seed=3, n=2, max_tokens=12, ignore_eos=True)
    answers = []
    for interrupt in (False, True):
        engine = load(llama, device="cpu", block_size=4, max_num_batched_tokens=16, **cache_dir)
        compute = engine._runner.run

        def often(batch: ScheduledBatch, interrupted: object, compute=compute) -> torch.Tensor | None:
            for layer in range(3):
                asked = count()
                assert compute(batch, lambda asked=asked, layer=layer: next(asked) == layer) is None
                assert next(asked) == layer + 1
            return compute(batch)

        if interrupt:
            monkeypatch.setattr(engine._runner, "run", often)
        for name in range(3):
            engine.add(EngineRequest(str(name), tuple(range(name, name + 30)), params))
        found = drain(engine)
        answers.append([found.ids(str(name), choice) for name in range(3) for choice in range(2)])
    assert answers[0] == answers[1]
