"""A row's logits have the same bits alone, in a batch, in chunks, after preemption and in forks."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.protocol import SamplingParams
from tests.support.engine_driver import drain, load
from workers.engine.interface import EngineRequest
from workers.engine.scheduling.scheduled_batch import ScheduledBatch

KINDS: dict[str, dict[str, Any]] = {
    "none": {"batch_invariant": True},  # which a CPU is anyway
    "int8": {"quantization": "int8", "device": "cpu"},
    "int4": {"quantization": "int4", "device": "cpu"},
}
Rows = dict[tuple[str, int, int], Tensor]


@dataclass(frozen=True)
class Case:
    """Prompts, the size of the vocabulary, and the number of tokens of each answer."""

    prompts: list[tuple[int, ...]]
    length: int
    n: int = 1


def make_case(count: int, vocabulary: int, longest: int, length: int) -> Case:
    rng = random.Random(count)
    prompts = [tuple(rng.randrange(vocabulary) for _ in range(rng.randint(1, longest))) for _ in range(count)]
    return Case(prompts, length)


def logits(folder: Path, case: Case, names: range, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Rows:
    """Return the logits that the sampler got, by request, choice and length; recomputed rows are the same."""
    engine = load(folder, **settings)
    rows: Rows = {}
    compute = engine._runner.run

    def recording(batch: ScheduledBatch, interrupted: object) -> Tensor:
        found = compute(batch)
        sampled = [item.sequence for item in batch.items if item.samples]
        for sequence, row in zip(sampled, found, strict=True):
            key = (sequence.job_id, sequence.choice, sequence.num_tokens)
            assert key not in rows or torch.equal(rows[key], row)
            rows[key] = row.clone()
        return found

    monkeypatch.setattr(engine._runner, "run", recording)
    params = SamplingParams(temperature=1.0, seed=5, n=case.n, max_tokens=case.length, ignore_eos=True)
    for name in names:
        engine.add(EngineRequest(str(name), case.prompts[name], params))
    drain(engine)
    if "num_kv_blocks" in settings:
        assert engine.stats().preemptions > 0
    return rows


def check(
    folder: Path,
    case: Case,
    quantization: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    pool: int,
    alone: int,
    single: int,
    preempted: int | None = None,
    budgets: tuple[int, ...] = (16, 256),
) -> None:
    """Compare logits; a pool of `pool` blocks forces preemption of the first `preempted` requests, `alone` requests
    are also computed alone, and `single` ones a token at a time.
    """

    def rows(case: Case, names: range, **settings: Any) -> Rows:
        return logits(folder, case, names, monkeypatch, **KINDS[quantization], block_size=4, **settings)

    everyone = range(len(case.prompts))
    together = rows(case, everyone)
    assert len(together) == len(everyone) * case.length
    others = [rows(case, range(name, name + 1)) for name in range(alone)]
    others += [rows(case, everyone, max_num_batched_tokens=budget) for budget in budgets]
    others += [rows(case, range(single), max_num_batched_tokens=1)]
    others += [rows(case, everyone[:preempted], max_num_batched_tokens=16, num_kv_blocks=pool)]
    for found in others:
        assert all(torch.equal(row, together[key]) for key, row in found.items())
    forked = rows(replace(case, n=3), range(4))
    assert all(torch.equal(row, together[key]) for key, row in forked.items() if key[1] == 0)
    recomputed = rows(replace(case, n=3), range(4), max_num_batched_tokens=8, num_kv_blocks=pool)
    assert all(torch.equal(row, forked[key]) for key, row in recomputed.items())


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        ("llama", "int8"),
        ("qwen3", "none"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("llama", "none"), ("qwen3", "int8"), ("llama", "int4"))
        ),
    ],
)
def test_tiny_models_are_batch_invariant(
    name: str, quantization: str, checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(32, vocabulary=256, longest=50, length=16)
    check(checkpoints(name), case, quantization, monkeypatch, pool=24, alone=4, single=6)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "quantization"), [("gemma2", "none"), ("mixtral", "int8"), ("gpt-oss", "none")])
def test_windows_caps_sinks_and_experts_are_batch_invariant(
    name: str, quantization: str, checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(12, vocabulary=256, longest=50, length=16)
    check(checkpoints(name), case, quantization, monkeypatch, pool=24, alone=2, single=2)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_smollm2_is_batch_invariant(smollm2: Path, quantization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(32, vocabulary=49_000, longest=8, length=4)
    limits = {"alone": 1, "single": 1, "preempted": 8, "budgets": (16,)}
    check(smollm2, case, quantization, monkeypatch, pool=8, **limits)
