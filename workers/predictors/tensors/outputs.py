"""Outputs of a model as the tensors of a result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shared.errors import ConfigError
from shared.protocol import Infer, Tensor
from shared.repository.spec import ModelSpec, TensorSpec
from workers.predictors.interface import Array, Arrays
from workers.predictors.model_files import read_model_file
from workers.predictors.tensors.arrays import to_tensor
from workers.predictors.tensors.shapes import matches, reshape


class ModelFault(Exception):
    """The model returned outputs that contradict its description. The message is for the caller."""


class OutputWriter:
    """Makes tensors of one model's outputs.

    Args:
        folder: of the model, with the files of the names of classes.
    """

    def __init__(self, spec: ModelSpec, folder: Path | None = None) -> None:
        self._outputs = {each.name: each for each in spec.outputs}
        self._batched = spec.max_batch_size > 0
        self._labels = {each.name: _read_labels(each, folder) for each in spec.outputs if each.label_filename}

    def write(self, arrays: Arrays, work: Infer) -> tuple[Tensor, ...]:
        """Return the outputs that a request wants. Raises ModelFault."""
        return tuple(self._write(name, arrays, work) for name in self._wanted(arrays, work))

    def _wanted(self, arrays: Arrays, work: Infer) -> Iterator[str]:
        if not work.outputs:
            yield from (name for name in self._outputs if name in arrays)
            return
        for name in dict.fromkeys(work.outputs):
            if name not in arrays:
                raise ModelFault(f"the model did not return its output {name}")
            yield name

    def _write(self, name: str, arrays: Arrays, work: Infer) -> Tensor:
        spec = self._outputs[name]
        array = self._reshaped(spec, np.asarray(arrays[name]))
        if name in work.classifications:
            return self._classify(spec, array, work.classifications[name])
        try:
            return to_tensor(name, spec.datatype, array)
        except TypeError as error:
            raise ModelFault(
                f"the model returned an output of another type than in its description: {error}"
            ) from error

    def _reshaped(self, spec: TensorSpec, array: Array) -> Array:
        batch = array.shape[:1] if self._batched else ()
        inner = array.shape[len(batch) :]
        if not matches(inner, spec.dims if spec.reshape is None else spec.reshape):
            raise ModelFault(
                f"the model returned {spec.name} with the shape {[*array.shape]}, unlike its description"
            )
        if spec.reshape is None:
            return array
        return array.reshape(*batch, *reshape(inner, spec.reshape, spec.dims))

    def _classify(self, spec: TensorSpec, array: Array, classes: int) -> Tensor:
        """Return the best classes of each row, the best first, as `value:index` or `value:index:label`."""
        rows = array.reshape(array.shape[0] if self._batched else 1, -1)
        labels = self._labels.get(spec.name, [])
        found = [[_class_text(row, index, labels) for index in _best(row, classes)] for row in rows]
        texts = np.array(found, dtype=object).reshape(len(found), -1)
        return to_tensor(spec.name, "BYTES", texts if self._batched else texts[0])


def _best(row: Array, classes: int) -> list[int]:
    """Return the indexes of the highest values; equal ones in the order of their indexes."""
    order = np.argsort(row[::-1], kind="stable")[::-1]
    best: list[int] = (len(row) - 1 - order)[:classes].tolist()
    return best


def _class_text(row: Array, index: int, labels: list[str]) -> str:
    value = f"{row[index]:f}" if row.dtype.kind == "f" else str(int(row[index]))
    label = f":{labels[index]}" if index < len(labels) else ""
    return f"{value}:{index}{label}"


def _read_labels(spec: TensorSpec, folder: Path | None) -> list[str]:
    if folder is None:
        raise ConfigError(f"the labels of output {spec.name} cannot be read: the model has no folder")
    try:
        return read_model_file(folder, spec.label_filename).decode().splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{spec.label_filename}, the labels of output {spec.name}, must be UTF-8") from error
