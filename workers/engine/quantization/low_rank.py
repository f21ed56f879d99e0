"""Products of two narrow matrices, as LoRA adapters have them, that are added to some rows of a layer's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from workers.engine.quantization.interface import Linear


@dataclass(frozen=True)
class LowRank:
    """Product (x down^T) up^T.

    Attributes:
        rank: number of results in between.
        start, outputs: the part of a fused layer's outputs that it is for.
    """

    down: Linear
    up: Linear
    rank: int
    start: int
    outputs: int


@dataclass(frozen=True)
class Rows:
    """Rows of a step: part first … first + count - 1 of the numbers of rows; `place` if they are adjacent."""

    first: int
    count: int
    place: slice | None


RowProducts = Sequence[tuple[Rows, LowRank]]


def add_products(x: Tensor, out: Tensor, numbers: Tensor, products: RowProducts) -> None:
    """Add products to rows of `out`, in plain torch.

    Args:
        numbers: [n] int64, the numbers of rows that `products` refers to; an output of a row occurs once.
    """
    for rows, product in products:
        part = out[:, product.start : product.start + product.outputs]
        if rows.place is not None:
            part[rows.place].add_(product.up(product.down(x[rows.place])))
        else:
            chosen = numbers[rows.first : rows.first + rows.count]
            part.index_add_(0, chosen, product.up(product.down(x.index_select(0, chosen))))
