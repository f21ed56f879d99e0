"""An adapter in memory, ready to be computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workers.engine.quantization.low_rank import LowRank


@dataclass(frozen=True, eq=False)
class AdapterWeights:
    """An adapter, ready to be computed.

    Attributes:
        digest: of its files' contents.
        rank: the largest of its matrices.
        num_bytes: memory that it takes.
        products: those of each fused layer, by its name.
    """

    digest: str
    rank: int
    num_bytes: int
    products: Mapping[str, Sequence[LowRank]]
