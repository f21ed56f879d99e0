"""Tensors, and work on a model that takes tensors and returns tensors."""

from __future__ import annotations

from math import prod
from typing import Literal, get_args

import msgspec

Integer = Literal["UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"]
DataType = Literal["BOOL", Integer, "FP16", "BF16", "FP32", "FP64", "BYTES"]
DATA_TYPES: tuple[DataType, ...] = get_args(DataType)
ITEM_BYTES: dict[DataType, int] = {  # BYTES has items of any size
    **{"BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8},
    **{"FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8},
}
Parameter = bool | int | float | str


class Tensor(msgspec.Struct, frozen=True, array_like=True):
    """A named tensor, in the binary form of the Open Inference Protocol.

    `data` is row-major and little-endian; an item of BOOL has one byte, and an item of BYTES has its length as four
    bytes before it.
    """

    name: str
    datatype: DataType
    shape: tuple[int, ...]
    data: bytes

    @property
    def size(self) -> int:
        """Return the number of items that the shape has."""
        return prod(self.shape)


class SequenceStep(msgspec.Struct, frozen=True, omit_defaults=True):
    """Place of a request in a sequence of requests to a model that keeps state between them."""

    id: int | str
    start: bool = False
    end: bool = False


class Infer(msgspec.Struct, frozen=True, kw_only=True, tag="infer", omit_defaults=True):
    """Inference on tensors.

    Attributes:
        outputs: the names of the wanted outputs; empty for all.
        version: of the model; "" for its newest loaded one.
        level: the priority level within the model, 1 the most urgent; 0 for the model's default.
        timeout_us: how long the request may wait to be batched; 0 for the model's default.
        sequence: for a model with sequence batching.
        parameters: further ones of the request, passed on to models that read them.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] = ()
    version: str = ""
    level: int = 0
    timeout_us: int = 0
    sequence: SequenceStep | None = None
    parameters: dict[str, Parameter] = {}
