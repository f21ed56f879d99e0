"""An adapter in memory, ready to be computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from workers.engine.quantization.interface import Linear


@dataclass(frozen=True)
class Delta:
    """Product of an adapter for one fused layer."""

    down: Linear
    up: Linear

    def __call__(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


@dataclass(frozen=True, eq=False)
class AdapterWeights:
    """An adapter, ready to be computed.

    Attributes:
        digest: of its files' contents.
        rank: the largest of its matrices.
        num_bytes: memory that it takes.
        deltas: its products by the name of the fused layer.
    """

    digest: str
    rank: int
    num_bytes: int
    deltas: Mapping[str, Delta]
