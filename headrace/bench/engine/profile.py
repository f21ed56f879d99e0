"""`python -m headrace.bench.engine.profile MODEL SEED CONCURRENCY QUANTIZATION`: time by part on the mix, as JSON.

It runs on the CPU, since a GPU works asynchronously. The floor is the time of the matrix products alone, with the
same shapes, in the same order and in the same process.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
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
from workers.engine.kernels import DenseMlp, Kernels, LayerWeights
from workers.engine.kernels.cpp_layers import PARTS, CppLayers
from workers.engine.kernels.select import choose_kernels
from workers.engine.quantization.grouped_weight import GroupedWeight
from workers.engine.quantization.interface import Linear, Quantization
from workers.engine.sampling.sampler import sample

PRODUCTS, ATTENTION, NORMS = "matrix products", "attention", "norms, activation"


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

    def spend(self, part: str, seconds: float) -> None:
        """Count time that was measured inside the call that is timed now."""
        self.parts[part] += seconds
        self._inner += seconds


class TimedLinear:
    """Linear layer that is timed and recorded."""

    def __init__(self, layer: Linear, part: str, size: int, timed: TimedKernels) -> None:
        self.layer = layer
        self.size = size
        self._products = timed.products
        self._run = timed.clock.timed(part, layer)

    def __call__(self, x: Tensor) -> Tensor:
        self._products.append((self.layer, len(x), self.size))
        out: Tensor = self._run(x)
        return out


class TimedLayers:
    """Layers that C++ computes together, and of whose parts it measures the time.

    The products' part lacks the rounding of activations, which counts as that of norms.
    """

    def __init__(self, layers: CppLayers, linears: list[TimedLinear], timed: TimedKernels) -> None:
        self._layers, self._linears, self._timed = layers, linears, timed

    def __call__(self, residual: Tensor, *args: Any) -> Tensor | None:
        self._layers.seconds = (ctypes.c_double * len(PARTS))()
        out = self._layers(residual, *args)
        for part, seconds in zip((PRODUCTS, ATTENTION, NORMS), self._layers.seconds, strict=True):
            self._timed.clock.spend(part, seconds)
        self._timed.products += [(linear.layer, len(residual), linear.size) for linear in self._linears]
        return out


class TimedKernels:
    """Kernels that are timed, and that record the layer and number of rows of each matrix product."""

    def __init__(self, kernels: Kernels, clock: Clock) -> None:
        self._kernels = kernels
        self.quantization = kernels.quantization
        self.clock = clock
        self.recordable, self.exact_rows = kernels.recordable, kernels.exact_rows
        self.portable, self.rounding = kernels.portable, kernels.rounding
        self.softmax, self.rotary_table, self.rows = kernels.softmax, kernels.rotary_table, kernels.rows
        self.packed, self.keeps_groups = kernels.packed, kernels.keeps_groups
        self.keeps_floats = kernels.keeps_floats
        self.products: list[tuple[Linear, int, int]] = []
        self.attention = clock.timed(ATTENTION, kernels.attention)
        self.rms_norm = clock.timed(NORMS, kernels.rms_norm)
        self.add_rms_norm = clock.timed(NORMS, kernels.add_rms_norm)
        self.rope_and_cache = clock.timed(ATTENTION, kernels.rope_and_cache)
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
        return TimedLinear(layer, "output head" if is_head else PRODUCTS, size, self)

    def layers(self, weights: Sequence[LayerWeights], norm_eps: float) -> TimedLayers | None:
        if not all(isinstance(layer.mlp, DenseMlp) for layer in weights):
            return None
        linears: list[TimedLinear] = []

        def untimed(linear: Linear) -> Linear:
            assert isinstance(linear, TimedLinear)
            linears.append(linear)
            return linear.layer

        plain = []
        for layer in weights:
            mlp = layer.mlp
            assert isinstance(mlp, DenseMlp)
            qkv, output = untimed(layer.qkv), untimed(layer.output)
            mlp = replace(mlp, gate_up=untimed(mlp.gate_up), down=untimed(mlp.down))
            plain.append(replace(layer, qkv=qkv, output=output, mlp=mlp))
        layers = self._kernels.layers(plain, norm_eps)
        return TimedLayers(layers, linears, self) if isinstance(layers, CppLayers) else None

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
        rate = run_mix(engine, peer_mix(seed, concurrency), concurrency).rate
        total = time.perf_counter() - begin
    parts = dict(sorted(clock.parts.items(), key=lambda item: -item[1]))
    parts["between steps (tokenizing, driver)"] = total - sum(parts.values())
    with torch.inference_mode():
        return Profile(parts, total, kernels.floor(), rate)


if __name__ == "__main__":
    print(json.dumps(asdict(profile(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))))
