"""TensorFlow's SavedModel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from shared.errors import ConfigError, InvalidRequest
from shared.protocol import DATA_TYPES, DataType
from shared.repository.spec import ModelSpec, TensorSpec
from workers.predictors.frameworks import model_file, parameters
from workers.predictors.frameworks.devices import cuda_device
from workers.predictors.frameworks.signature import Signature
from workers.predictors.interface import Array, Arrays, Execution

NAMES: dict[str, DataType] = {
    **{"bool": "BOOL", "string": "BYTES", "bfloat16": "BF16"},
    **{"float16": "FP16", "float32": "FP32", "float64": "FP64"},
    **{each.lower(): each for each in DATA_TYPES if "INT" in each},
}
SIGNATURE = "serving_default"


def complete(spec: ModelSpec, folder: Path) -> ModelSpec:
    _, function = _load(spec, folder)
    _, inputs = function.structured_input_signature
    return Signature(
        tuple(_described(spec, name, each) for name, each in sorted(inputs.items())),
        tuple(_described(spec, name, each) for name, each in sorted(function.structured_outputs.items())),
    ).complete(spec)


def load(spec: ModelSpec, folder: Path, *, threads: int | None) -> TensorflowPredictor:
    if intra := parameters.number(spec, "TF_NUM_INTRA_THREADS") or threads:
        tf.config.threading.set_intra_op_parallelism_threads(intra)
    device = cuda_device(spec, available=bool(tf.config.list_physical_devices("GPU")))
    with tf.device("CPU:0" if device is None else f"GPU:{device}"):
        return TensorflowPredictor(*_load(spec, folder), spec)


class TensorflowPredictor:
    """An instance of a SavedModel's signature."""

    memory_bytes = 0  # its process reports what it needs

    def __init__(self, model: Any, function: Any, spec: ModelSpec) -> None:
        self._model = model  # the function does not keep its variables
        self._function = function
        self._types = {name: each.dtype for name, each in function.structured_input_signature[1].items()}
        self._outputs = tuple(each.name for each in spec.outputs)

    def predict(self, call: Execution) -> Arrays:
        given = {name: tf.convert_to_tensor(array, self._types[name]) for name, array in call.inputs.items()}
        try:
            found: Mapping[str, Any] = self._function(**given)
        except tf.errors.InvalidArgumentError as error:
            raise InvalidRequest(f"the model refuses its inputs: {error.message}") from error
        return {name: _array(found[name]) for name in call.outputs or self._outputs}

    def stream(self, call: Execution) -> Iterator[Arrays]:
        yield self.predict(call)

    def close(self) -> None:
        del self._function, self._model


def _load(spec: ModelSpec, folder: Path) -> tuple[Any, Any]:
    """Return the model and the function of its signature. Raises ConfigError."""
    path = model_file.find(spec, folder)
    wanted = spec.parameters.get("TF_SIGNATURE_DEF", SIGNATURE)
    try:
        model = tf.saved_model.load(str(path))
    except Exception as error:  # a damaged file may raise anything
        raise model_file.unusable(spec, path, error) from error
    if wanted not in model.signatures:
        raise model_file.unusable(spec, path, f"it has no signature {wanted}, only {', '.join(model.signatures)}")
    return model, model.signatures[wanted]


def _described(spec: ModelSpec, name: str, found: Any) -> TensorSpec:
    if found.dtype.name not in NAMES or found.shape.rank is None:
        raise ConfigError(f"model {spec.name}: {name} is no tensor of a known rank and a supported type")
    dims = tuple(-1 if size is None else size for size in found.shape)
    return TensorSpec(name=name, datatype=NAMES[found.dtype.name], dims=dims)


def _array(tensor: Any) -> Array:
    found: Array = np.asarray(tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor)
    return found
