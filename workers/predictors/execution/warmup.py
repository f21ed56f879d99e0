"""Warm-up of instances: requests that each of them executes before its version is ready."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from shared.errors import ConfigError, HeadraceError
from shared.protocol import ITEM_BYTES
from shared.repository.spec import ModelSpec, WarmUp, WarmUpInput
from workers.engine.stage import Stage
from workers.predictors.interface import NUMPY_TYPES, Array, Execution, Predictor, PredictorLost
from workers.predictors.model_files import read_model_file
from workers.predictors.tensors.arrays import read_items, zeros

FOLDER = "warmup"  # of the model's folder, for input_data_file
RANDOM_BELOW = 128  # random integers fit every type


def warm_up(spec: ModelSpec, instances: Sequence[Predictor], folder: Path | None) -> None:
    """Execute the warm-up requests on each instance, on all at a time. Raises ConfigError."""
    calls = [call for each in spec.warm_ups for call in [_call(spec, each, folder)] * max(1, each.count)]
    if not calls or not instances:
        return
    with ThreadPoolExecutor(len(instances), "warm-up") as pool:
        for _ in pool.map(lambda instance: _execute(spec, instance, calls), instances):
            pass


def _execute(spec: ModelSpec, instance: Predictor, calls: Sequence[Execution]) -> None:
    for call in calls:
        try:
            with Stage("warm-up", model=spec.name):
                _run(spec, instance, call)
        except HeadraceError as error:
            raise ConfigError(f"the warm-up of {spec.name} failed: {_reason(error)}") from error


def _run(spec: ModelSpec, instance: Predictor, call: Execution) -> None:
    if not spec.decoupled:
        instance.predict(call)
        return
    for _ in instance.stream(call):
        pass


def _reason(error: HeadraceError) -> str:
    """Return the model's own message: it is for who loads the model, and the inputs are not a caller's."""
    cause = error.__cause__
    if isinstance(cause, PredictorLost) or cause is None:
        return str(cause or error.message)
    return f"{type(cause).__name__}: {cause}"


def _call(spec: ModelSpec, warm_up: WarmUp, folder: Path | None) -> Execution:
    size = max(1, warm_up.batch_size)
    if size > max(1, spec.max_batch_size):
        raise ConfigError(f"the batch_size of warm-up {warm_up.name} must be at most {max(1, spec.max_batch_size)}")
    return Execution(
        {name: _array(spec, name, given, size, folder) for name, given in warm_up.inputs.items()},
        parameters={},
    )


def _array(spec: ModelSpec, name: str, given: WarmUpInput, size: int, folder: Path | None) -> Array:
    if any(dim < 0 for dim in given.dims):
        raise ConfigError(f"the dims of warm-up input {name} must be fixed, got {[*given.dims]}")
    array = _data(name, given, folder)
    return np.broadcast_to(array, (size, *given.dims)).copy() if spec.max_batch_size else array


def _data(name: str, given: WarmUpInput, folder: Path | None) -> Array:
    """Return the data of one row."""
    if given.source == "input_data_file":
        return _read(name, given, folder)
    if given.source == "zero_data" or given.datatype == "BYTES":
        return zeros(given.datatype, given.dims)
    random = np.random.default_rng(0)
    dtype = NUMPY_TYPES[given.datatype]
    if dtype.kind == "f":
        return random.random(given.dims).astype(dtype)
    return random.integers(2 if given.datatype == "BOOL" else RANDOM_BELOW, size=given.dims).astype(dtype)


def _read(name: str, given: WarmUpInput, folder: Path | None) -> Array:
    if folder is None:
        raise ConfigError(f"warm-up input {name} needs a file, but the model has no folder")
    data = read_model_file(folder / FOLDER, given.file)
    try:
        return read_items(given.datatype, data).reshape(given.dims)
    except ValueError as error:
        items = "items of BYTES" if given.datatype == "BYTES" else f"items of {ITEM_BYTES[given.datatype]} bytes"
        wanted = int(np.prod(given.dims))
        raise ConfigError(f"{given.file} of warm-up input {name} must have {wanted} {items}") from error
