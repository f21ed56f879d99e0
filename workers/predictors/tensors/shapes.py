"""Shapes of tensors against the dimensions of a model's description."""

from __future__ import annotations

from collections.abc import Sequence

VARIABLE = -1  # a dimension of any size


def matches(shape: Sequence[int], dims: Sequence[int]) -> bool:
    """Return whether a shape has the given dimensions."""
    return len(shape) == len(dims) and all(dim in (VARIABLE, size) for size, dim in zip(shape, dims, strict=True))


def reshape(shape: Sequence[int], dims: Sequence[int], target: Sequence[int]) -> tuple[int, ...]:
    """Return the shape with the dimensions of `target`; its variable ones have the sizes of those of `dims`."""
    sizes = iter([size for size, dim in zip(shape, dims, strict=True) if dim == VARIABLE])
    return tuple(next(sizes, VARIABLE) if dim == VARIABLE else dim for dim in target)
