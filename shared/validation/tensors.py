"""The checks of tensors that need no description of the model."""

from __future__ import annotations

from math import prod
from struct import Struct, error

from shared.errors import InvalidRequest
from shared.protocol import ITEM_BYTES, Infer, Tensor

MAX_TENSORS = 256  # inputs of a request
MAX_DIMENSIONS = 32
MAX_ITEMS = 100_000  # of BYTES in a tensor; a check takes 0.1 µs for each, on the event loop
MAX_SIZE = 2**56  # of all dimensions together; an empty tensor may have others than 0 that no array can have
LENGTH = Struct("<I")  # before each item of BYTES


def check_tensors(work: Infer) -> None:
    """Raise InvalidRequest, naming the input, for the first tensor that contradicts itself."""
    if not 0 < len(work.inputs) <= MAX_TENSORS:
        raise InvalidRequest(f"inputs must have between 1 and {MAX_TENSORS} entries", param="inputs")
    names = [tensor.name for tensor in work.inputs]
    if len(set(names)) < len(names):
        raise InvalidRequest("inputs must have different names", param="inputs")
    for tensor in work.inputs:
        _check_tensor(tensor)


def _check_tensor(tensor: Tensor) -> None:
    param = tensor.name
    if len(tensor.shape) > MAX_DIMENSIONS or any(size < 0 for size in tensor.shape):
        raise InvalidRequest(
            f"the shape of input {tensor.name} must have at most {MAX_DIMENSIONS} sizes of at least 0", param=param
        )
    if prod(size for size in tensor.shape if size) > MAX_SIZE:
        raise InvalidRequest(f"the shape of input {tensor.name} is too large", param=param)
    if tensor.datatype == "BYTES":
        _check_items(tensor, param)
        return
    expected = tensor.size * ITEM_BYTES[tensor.datatype]
    if len(tensor.data) != expected:
        raise InvalidRequest(
            f"input {tensor.name} must have {expected} bytes for its shape {list(tensor.shape)} of "
            f"{tensor.datatype}, got {len(tensor.data)}",
            param=param,
        )


def _check_items(tensor: Tensor, param: str) -> None:
    """Raise InvalidRequest if the lengths within a tensor of BYTES do not add up to its data and its shape."""
    if tensor.size > MAX_ITEMS:
        raise InvalidRequest(f"input {tensor.name} must have at most {MAX_ITEMS} items of BYTES", param=param)
    data, length_at = tensor.data, LENGTH.unpack_from
    position = 0
    try:
        for _ in range(tensor.size):
            position += LENGTH.size + length_at(data, position)[0]
    except error:  # the data end within a length
        position = -1
    if position != len(data):
        raise InvalidRequest(
            f"input {tensor.name} must have {tensor.size} items of BYTES, each after its length, and nothing else",
            param=param,
        )
