"""Models that compute each row of a table alone: their description, and their inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from shared.errors import ConfigError
from shared.protocol import DataType
from shared.repository.spec import DynamicBatching, ModelSpec, TensorSpec
from workers.predictors.frameworks import texts
from workers.predictors.interface import NUMPY_TYPES, Array, Arrays

INPUT = "input__0"
OUTPUT = "output__0"
MAX_ROWS = 1024  # the max_batch_size of a model whose description gives none
DATA_TYPES: dict[str, DataType] = {
    **{"b1": "BOOL", "f2": "FP16", "f4": "FP32", "f8": "FP64"},
    **{"i1": "INT8", "i2": "INT16", "i4": "INT32", "i8": "INT64"},
    **{"u1": "UINT8", "u2": "UINT16", "u4": "UINT32", "u8": "UINT64"},
}


def complete(spec: ModelSpec, columns: int, compute: Callable[[Array], Arrays]) -> ModelSpec:
    """Return the description with what it leaves open. Raises ConfigError if the model has other columns.

    Args:
        columns: that the model takes.
        compute: the model; it computes one row to find its outputs.
    """
    spec = _with_batching(spec)
    inputs = spec.inputs or (_tensor(spec, INPUT, "FP32", (columns,)),)
    declared = sum(_columns(each) for each in inputs)
    if declared != columns:
        raise ConfigError(
            f"the inputs of model {spec.name} must have {columns} columns together, got {declared}", param="input"
        )
    outputs = spec.outputs
    if not outputs:
        try:
            found = compute(np.zeros((1, columns), "f4"))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model {spec.name} must declare its inputs and outputs: {error}") from error
        outputs = tuple(_tensor(spec, name, _datatype(each), each.shape[1:]) for name, each in found.items())
    return msgspec.structs.replace(spec, inputs=inputs, outputs=outputs)


def join_columns(spec: ModelSpec, inputs: Arrays) -> Array:
    """Return the table whose columns are the inputs, in the order of the description."""
    columns = [
        texts.decode(name, array) if array.dtype == object else array
        for name, array in ((each.name, inputs[each.name]) for each in spec.inputs if each.name in inputs)
    ]
    return columns[0] if len(columns) == 1 else np.column_stack(columns)


def as_declared(spec: ModelSpec, outputs: Arrays) -> Arrays:
    """Return outputs with the declared types, those of one number a row with the declared shape."""
    declared = {each.name: each for each in spec.outputs}
    return {name: _as_declared(declared[name], array, spec) for name, array in outputs.items()}


def _with_batching(spec: ModelSpec) -> ModelSpec:
    if spec.max_batch_size or spec.inputs or spec.outputs:
        return spec
    batching = spec.dynamic_batching or DynamicBatching()
    return msgspec.structs.replace(spec, max_batch_size=MAX_ROWS, dynamic_batching=batching)


def _columns(tensor: TensorSpec) -> int:
    dims = tensor.dims if tensor.reshape is None else tensor.reshape
    return dims[-1] if dims else 1


def _tensor(spec: ModelSpec, name: str, datatype: DataType, dims: tuple[int, ...]) -> TensorSpec:
    if not spec.max_batch_size:
        return TensorSpec(name=name, datatype=datatype, dims=(-1, *dims))
    return TensorSpec(name=name, datatype=datatype, dims=dims or (1,))


def _datatype(array: Array) -> DataType:
    return DATA_TYPES.get(array.dtype.str[1:], "BYTES")


def _as_declared(tensor: TensorSpec, array: Array, spec: ModelSpec) -> Array:
    if tensor.datatype == "BYTES":
        array = texts.encode(array)
    else:
        array = array.astype(NUMPY_TYPES[tensor.datatype], copy=False)
    dims = tensor.dims if tensor.reshape is None else tensor.reshape
    rank = len(dims) + (spec.max_batch_size > 0)
    return array[:, np.newaxis] if array.ndim == 1 and rank == 2 else array
