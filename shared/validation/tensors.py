"""The checks of tensors that need no description of the model."""

from __future__ import annotations

from shared.errors import InvalidRequest
from shared.protocol import ITEM_BYTES, Infer, Tensor

MAX_TENSORS = 256  # inputs of a request
MAX_DIMENSIONS = 32
LENGTH_BYTES = 4  # before each item of BYTES


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
    position = items = 0
    while position < len(tensor.data):
        length = int.from_bytes(tensor.data[position : position + LENGTH_BYTES], "little")
        position += LENGTH_BYTES + length
        items += 1
    if position != len(tensor.data) or items != tensor.size:
        raise InvalidRequest(
            f"input {tensor.name} must have {tensor.size} items of BYTES, each after its length, and nothing else",
            param=param,
        )
