"""MLP of a mixture of experts: a router chooses, for each row, the experts that compute it.

A row has the same bits in any batch: its experts are chosen and scored by its own values, an expert's linear layers
compute a row alike beside any others, and a row's results are added in the order of the experts' numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from workers.engine.kernels import Activation, Kernels
from workers.engine.models.checkpoint import WeightReader
from workers.engine.models.llama_config import ExpertsConfig, LlamaModelConfig
from workers.engine.models.stored.mxfp4 import read_stacked
from workers.engine.quantization.interface import Linear


@dataclass(frozen=True)
class Expert:
    """Layers of one expert; `gate_up` is a fused projection."""

    gate_up: Linear
    down: Linear


@dataclass(frozen=True)
class MixtureOfExperts:
    """MLP of one layer; see `Mlp`."""

    router: Linear
    experts: Sequence[Expert]
    chosen: int
    normalized: bool
    activation: Activation
    kernels: Kernels
    recordable: ClassVar[bool] = False  # the number of rows of each expert is read from the device

    def __call__(self, x: Tensor) -> Tensor:
        numbers, scores = self._route(x)
        by_expert = numbers.flatten().argsort(stable=True)
        counts = numbers.flatten().bincount(minlength=len(self.experts)).tolist()
        parts = x.new_empty(numbers.numel(), x.shape[1])
        groups = [torch.split(each, counts) for each in (x[by_expert // self.chosen], by_expert)]
        for expert, rows, places in zip(self.experts, *groups, strict=True):
            if len(rows):
                parts[places] = expert.down(self.kernels.activate(expert.gate_up(rows), self.activation))
        parts = parts.view(len(x), self.chosen, -1) * scores[..., None]
        return _in_order(parts).contiguous()

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers of each row's experts, ascending, and their scores, both [T, chosen]."""
        scores, numbers = self.kernels.softmax(self.router(x).float()).topk(self.chosen, dim=-1)
        if self.normalized:
            scores = scores / _in_order(scores)[:, None]
        numbers, order = numbers.sort(dim=-1)
        return numbers, scores.gather(1, order).to(x.dtype)


def _in_order(parts: Tensor) -> Tensor:
    """Add [T, n, …] over n, one after the other: torch's own sums depend on the CPU."""
    total = parts[:, 0]
    for index in range(1, parts.shape[1]):
        total = total + parts[:, index]
    return total


def load_experts(reader: WeightReader, c: LlamaModelConfig, layer: str, kernels: Kernels) -> MixtureOfExperts:
    """Load the experts of the layer whose tensors begin with `layer`. Raises ConfigError."""
    assert c.experts is not None
    prefix = f"{layer}.{c.experts.names.prefix}"
    load = _stacked if c.experts.names.stacked else _separate
    return MixtureOfExperts(
        router=reader.linear(
            prefix, {c.experts.names.router: c.experts.count}, c.hidden_size, sensitive=True, adaptable=False
        ),
        experts=load(reader, c.experts, f"{prefix}.experts", c.hidden_size),
        chosen=c.experts.chosen,
        normalized=c.experts.normalized,
        activation=c.activation,
        kernels=kernels,
    )


def _separate(reader: WeightReader, c: ExpertsConfig, prefix: str, hidden: int) -> list[Expert]:
    """Load experts that are stored one by one."""
    return [
        Expert(
            reader.linear(f"{prefix}.{number}", {c.names.gate: c.size, c.names.up: c.size}, hidden),
            reader.linear(f"{prefix}.{number}", {c.names.down: hidden}, c.size, sensitive=True),
        )
        for number in range(c.count)
    ]


def _stacked(reader: WeightReader, c: ExpertsConfig, prefix: str, hidden: int) -> list[Expert]:
    """Load experts that are stored in one tensor each, with alternating rows of gate and up."""
    gate_up = read_stacked(reader.tensors, f"{prefix}.{c.names.gate}", (c.count, 2 * c.size, hidden))
    down = read_stacked(reader.tensors, f"{prefix}.{c.names.down}", (c.count, hidden, c.size))
    gate_up_bias = reader.tensor(f"{prefix}.{c.names.gate}_bias", c.count, 2 * c.size)
    down_bias = reader.tensor(f"{prefix}.{c.names.down}_bias", c.count, hidden)
    order = torch.arange(2 * c.size).view(-1, 2).t().flatten().to(gate_up_bias.device)
    return [
        Expert(
            reader.layer([gate_up(number, alternating=True)], gate_up_bias[number][order]),
            reader.layer([down(number)], down_bias[number].contiguous(), sensitive=True),
        )
        for number in range(c.count)
    ]
