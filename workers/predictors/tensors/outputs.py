"""Outputs of a model as the tensors of a result."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shared.protocol import Infer, Tensor
from shared.repository.spec import ModelSpec, TensorSpec
from workers.predictors.interface import Array, Arrays
from workers.predictors.tensors.arrays import to_tensor
from workers.predictors.tensors.shapes import matches, reshape


class ModelFault(Exception):
    """The model returned outputs that contradict its description. The message is for the caller."""


class OutputWriter:
    """Makes tensors of one model's outputs."""

    def __init__(self, spec: ModelSpec) -> None:
        self._outputs = {each.name: each for each in spec.outputs}
        self._batched = spec.max_batch_size > 0

    def write(self, arrays: Arrays, work: Infer) -> tuple[Tensor, ...]:
        """Return the outputs that a request wants. Raises ModelFault."""
        return tuple(self._write(self._outputs[name], arrays[name]) for name in self._wanted(arrays, work))

    def _wanted(self, arrays: Arrays, work: Infer) -> Iterator[str]:
        if not work.outputs:
            yield from (name for name in self._outputs if name in arrays)
            return
        for name in dict.fromkeys(work.outputs):
            if name not in arrays:
                raise ModelFault(f"the model did not return its output {name}")
            yield name

    def _write(self, spec: TensorSpec, output: Array) -> Tensor:
        array = self._reshaped(spec, np.asarray(output))
        try:
            return to_tensor(spec.name, spec.datatype, array)
        except TypeError as error:
            raise ModelFault(f"the type of an output differs from its description: {error}") from error

    def _reshaped(self, spec: TensorSpec, array: Array) -> Array:
        batch = array.shape[:1] if self._batched else ()
        inner = array.shape[len(batch) :]
        if not matches(inner, spec.dims if spec.reshape is None else spec.reshape):
            raise ModelFault(f"the shape of output {spec.name}, {[*array.shape]}, differs from its description")
        if spec.reshape is None:
            return array
        return array.reshape(*batch, *reshape(inner, spec.reshape, spec.dims))
