"""Reader of one rank's part of a checkpoint.

Of safetensors, which are mapped, only the part is read. Matrices that are stored in another format are sliced after
they have been decoded, and integers in groups stay packed where a rank's inputs are whole groups.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.engine.kernels import Kernels
from workers.engine.models.checkpoint import WeightReader
from workers.engine.models.stored.interface import StoredFormat, Tensors
from workers.engine.parallel.group import RankGroup
from workers.engine.parallel.shard import Part, Shard
from workers.engine.quantization.grouped_weight import GroupedWeight
from workers.engine.quantization.interface import Linear


class ShardReader(WeightReader):
    """Reader that has the model code load a part as if it were a whole model; see `WeightReader`."""

    def __init__(
        self,
        tensors: Tensors,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels,
        stored: StoredFormat,
        *,
        shard: Shard,
        group: RankGroup,
    ) -> None:
        super().__init__(tensors, dtype, device, kernels, ShardedFormat(shard, stored))
        self._shard = shard
        self._group = group

    def tensor(self, name: str, *shape: int) -> Tensor:
        layer, _, kind = name.rpartition(".")
        if kind == "bias" and (part := self._shard.outputs(layer)) is not None:
            return super().tensor(name, part.whole)[part.range]
        found = super().tensor(name, *shape)
        if kind == "bias" and self._shard.inputs(layer) is not None and self._shard.rank:
            return torch.zeros_like(found)  # rank 0 adds it
        return found

    def linear(
        self, prefix: str, parts: dict[str, int], size: int, *, sensitive: bool = False, adaptable: bool = True
    ) -> Linear:
        layer = super().linear(prefix, parts, size, sensitive=sensitive, adaptable=adaptable)
        return SummedLinear(layer, self._group) if any(map(self._shard.inputs, parts)) else layer

    def head(self, name: str, outputs: int, inputs: int, embedding: Tensor | None) -> Linear:
        part = self._shard.vocabulary
        if embedding is not None:
            embedding = embedding[part.range]
        return SplitHead(super().head(name, outputs, inputs, embedding), self._group, outputs)


class ShardedFormat:
    """Format whose matrices are the rank's parts of those of `whole`; see `StoredFormat`."""

    def __init__(self, shard: Shard, whole: StoredFormat) -> None:
        self.scales = whole.scales
        self._shard = shard
        self._whole = whole

    def matrix(self, tensors: Tensors, name: str, outputs: int, inputs: int) -> Tensor | GroupedWeight:
        by_output, by_input = self._shard.outputs(name), self._shard.inputs(name)
        found = self._whole.matrix(
            tensors,
            name,
            outputs if by_output is None else by_output.whole,
            inputs if by_input is None else by_input.whole,
        )
        if by_output is not None:
            found = found.rows(by_output.range) if isinstance(found, GroupedWeight) else found[by_output.range]
        return found if by_input is None else _columns(found, by_input)


def _columns(weight: Tensor | GroupedWeight, part: Part) -> Tensor | GroupedWeight:
    """Return some inputs of a weight; it is expanded if its groups do not end where the part does."""
    if not isinstance(weight, GroupedWeight):
        return weight[:, part.range]
    size = weight.group
    if weight.order is not None or part.begin % size or (part.end % size and part.end != weight.inputs):
        return weight.dequantize()[:, part.range]
    groups = slice(part.begin // size, -(-part.end // size))
    return replace(
        weight,
        codes=weight.codes[:, groups.start * size : groups.stop * size],
        scales=weight.scales[:, groups],
        zeros=weight.zeros[:, groups],
        inputs=part.length,
    )


@dataclass(frozen=True)
class SummedLinear:
    """Linear layer whose inputs are divided among the ranks; every rank gets the sum."""

    part: Linear
    group: RankGroup

    def __call__(self, x: Tensor) -> Tensor:
        return self.group.sum(self.part(x))


@dataclass(frozen=True)
class SplitHead:
    """Output head whose `outputs` are divided among the ranks; rank 0 gets all."""

    part: Linear
    group: RankGroup
    outputs: int

    def __call__(self, x: Tensor) -> Tensor:
        return self.group.join(self.part(x), self.outputs)
