"""`python -m headrace.bench.engine.profile MODEL SEED CONCURRENCY QUANTIZATION`: time by part on the mix, as JSON.

It runs on the CPU, since a GPU works asynchronously. The floor is the time of the matrix products alone, with the
same shapes, in the same order and in the same process.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import torch
from rich.table import Table
from torch import Tensor

from headrace.bench.engine.engine_only import load_engine_from_settings, run_mix
from headrace.bench.harness.workload import peer_mix, warmup_mix
from workers.engine import engine as engine_module
from workers.engine import token_step
from workers.engine.config import EngineConfig
from workers.engine.kernels import Kernels
from workers.engine.kernels.select import choose_kernels
from workers.engine.quantization.grouped_weight import GroupedWeight
from workers.engine.quantization.interface import Linear, Quantization
from workers.engine.sampling.sampler import sample

NORMS = "norms, rope, activation"


@dataclass(frozen=True)
class Profile:
    """Seconds by part, in total and of the floor; tokens/s while timed."""

    parts: dict[str, float]
    total: float
    floor: float
    rate: float

    @property
    def share_of_floor(self) -> float:
        return self.floor / self.total

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "share_of_floor": self.share_of_floor}

    def table(self) -> Table:
        table = Table("part", "seconds", "share")
        for part, seconds in self.parts.items():
            table.add_row(part, f"{seconds:.2f}", f"{seconds / self.total:.1%}")
        table.add_section()
        table.add_row("total", f"{self.total:.2f}", f"{self.rate:.1f} tokens/s")
        table.add_row("floor: matrix products alone", f"{self.floor:.2f}", f"{self.share_of_floor:.1%}")
        return table


class Clock:
    """Clock of seconds by part. Time of a nested part counts only for the inner part."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = defaultdict(float)
        self._inner = 0.0

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            outer, self._inner = self._inner, 0.0
            begin = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent = time.perf_counter() - begin
                self.parts[part] += spent - self._inner
                self._inner = outer + spent

        return run


class TimedKernels:
    """Kernels that are timed, and that record the layer and number of rows of each matrix product."""

    def __init__(self, kernels: Kernels, clock: Clock) -> None:
        self._kernels = kernels
        self.quantization = kernels.quantization
        self._clock = clock
        self.recordable, self.exact_rows = kernels.recordable, kernels.exact_rows
        self.packed, self.keeps_groups = kernels.packed, kernels.keeps_groups
        self.keeps_floats = kernels.keeps_floats
        self.products: list[tuple[Linear, int, int]] = []
        self.attention = clock.timed("attention", kernels.attention)
        self.rms_norm = clock.timed(NORMS, kernels.rms_norm)
        self.add_rms_norm = clock.timed(NORMS, kernels.add_rms_norm)
        self.rope_and_cache = clock.timed(NORMS, kernels.rope_and_cache)
        self.activate = clock.timed(NORMS, kernels.activate)
        self.soft_cap = clock.timed(NORMS, kernels.soft_cap)

    def with_quantization(self, quantization: Quantization) -> TimedKernels:
        self._kernels, self.quantization = self._kernels.with_quantization(quantization), quantization
        return self

    def linear(
        self, weights: Sequence[Tensor], bias: Tensor | None, *, keep: bool = False, head: bool = False
    ) -> Linear:
        return self._timed(self._kernels.linear(weights, bias, keep=keep, head=head), weights[0].shape[1], keep)

    def grouped_linear(self, weight: GroupedWeight, bias: Tensor | None, *, keep: bool = False) -> Linear:
        return self._timed(self._kernels.grouped_linear(weight, bias, keep=keep), weight.inputs, keep)

    def _timed(self, layer: Linear, size: int, is_head: bool) -> Linear:
        timed = self._clock.timed("output head" if is_head else "matrix products", layer)

        def product(x: Tensor) -> Tensor:
            self.products.append((layer, len(x), size))
            out: Tensor = timed(x)
            return out

        return product

    def floor(self) -> float:
        """Repeat all recorded matrix products, and return the seconds that they take alone."""
        sizes = {(rows, size) for _, rows, size in self.products}
        inputs = {(rows, size): torch.rand(rows, size) for rows, size in sizes}
        begin = time.perf_counter()
        for layer, rows, size in self.products:
            layer(inputs[rows, size])
        return time.perf_counter() - begin


def profile(model: str, seed: int, concurrency: int, quantization: str | None = None) -> Profile:
    clock = Clock()
    made: list[TimedKernels] = []

    def timed_kernels(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> TimedKernels:
        made.append(TimedKernels(choose_kernels(config, device, dtype), clock))
        return made[-1]

    with patch.object(engine_module, "choose_kernels", timed_kernels):
        engine = load_engine_from_settings(model, quantization=quantization, device="cpu")
    [kernels] = made
    sampling = clock.timed("sampling", sample)
    step, schedule = clock.timed("the rest of a step", engine.step), engine._scheduler.schedule
    run, decode = engine._runner.run, engine.tokenizer.decode
    with (
        patch.object(token_step, "sample", sampling),
        patch.object(engine, "step", step),
        patch.object(engine._scheduler, "schedule", clock.timed("scheduling", schedule)),
        patch.object(engine._runner, "run", clock.timed("the rest of the forward", run)),
        patch.object(engine.tokenizer, "decode", clock.timed("detokenizing", decode)),
    ):
        run_mix(engine, warmup_mix(seed), 2)
        clock.parts.clear()
        kernels.products.clear()
        begin = time.perf_counter()
        _, rate, _ = run_mix(engine, peer_mix(seed, concurrency), concurrency)
        total = time.perf_counter() - begin
    parts = dict(sorted(clock.parts.items(), key=lambda item: -item[1]))
    parts["between steps (tokenizing, driver)"] = total - sum(parts.values())
    with torch.inference_mode():
        return Profile(parts, total, kernels.floor(), rate)


if __name__ == "__main__":
    print(json.dumps(asdict(profile(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))))
