"""Texts as the items of BYTES."""

from __future__ import annotations

import numpy as np

from shared.errors import InvalidRequest
from workers.predictors.interface import Array


def decode(name: str, array: Array) -> Array:
    """Return the texts of an input of BYTES. Raises InvalidRequest."""
    try:
        texts = [item.decode() for item in array.ravel()]
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"input {name} must be UTF-8", param=name) from error
    return _objects(texts, array.shape)


def encode(array: Array) -> Array:
    """Return items of any type as the bytes of their texts."""
    return _objects([str(item).encode() for item in array.ravel()], array.shape)


def _objects(items: list[str] | list[bytes], shape: tuple[int, ...]) -> Array:
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return found.reshape(shape)
