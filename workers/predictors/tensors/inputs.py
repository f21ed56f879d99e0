"""Inputs of a request against the description of the model."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from shared.errors import InvalidRequest
from shared.protocol import Infer, Tensor
from shared.repository.spec import ModelSpec, TensorSpec
from workers.predictors.interface import Array
from workers.predictors.tensors.arrays import to_array
from workers.predictors.tensors.shapes import matches, reshape


@dataclass(frozen=True)
class CheckedInputs:
    """Facts about a request's inputs that batching needs.

    Attributes:
        batch_size: 1 for a model without a batch dimension.
        joins: only requests with equal values may be executed together.
    """

    batch_size: int
    joins: Hashable


class InputReader:
    """Checks the inputs of requests to one model, and reads them as arrays."""

    def __init__(self, spec: ModelSpec) -> None:
        self._model = spec.name
        self._specs = {each.name: each for each in spec.inputs}
        self._required = [each.name for each in spec.inputs if not each.optional]
        self._outputs = {each.name: each for each in spec.outputs}
        self._max_batch_size = spec.max_batch_size

    def check(self, work: Infer) -> CheckedInputs:
        """Raise InvalidRequest, naming the tensor, for the first one that does not match the description."""
        self._check_names(work)
        size: int | None = None
        shapes: dict[str, tuple[int, ...] | None] = {}
        for tensor in work.inputs:
            spec = self._specs[tensor.name]
            inner = self._check_tensor(tensor, spec)
            shapes[tensor.name] = None if spec.allow_ragged_batch else inner
            if self._max_batch_size:
                size = self._check_batch_size(tensor, size)
        joins = tuple(sorted(shapes.items())), tuple(sorted(work.parameters.items()))
        return CheckedInputs(size or 1, joins)

    def read(self, work: Infer) -> dict[str, Array]:
        """Return the arrays of checked inputs, in the shapes that the model takes."""
        return {tensor.name: self._read(tensor) for tensor in work.inputs}

    def _read(self, tensor: Tensor) -> Array:
        spec = self._specs[tensor.name]
        array = to_array(tensor)
        if spec.allow_ragged_batch:
            return array.ravel()
        if spec.reshape is None:
            return array
        batch = tensor.shape[:1] if self._max_batch_size else ()
        return array.reshape(*batch, *reshape(tensor.shape[len(batch) :], spec.dims, spec.reshape))

    def _check_names(self, work: Infer) -> None:
        given = {tensor.name for tensor in work.inputs}
        for name in given - self._specs.keys():
            expected = ", ".join(self._specs) or "none"
            raise InvalidRequest(f"input {name} is unknown: {self._model} has the inputs {expected}", param=name)
        for name in self._required:
            if name not in given:
                raise InvalidRequest(f"input {name} of {self._model} is missing", param=name)
        self._check_outputs(work)

    def _check_outputs(self, work: Infer) -> None:
        for name in [*work.outputs, *work.classifications]:
            if name not in self._outputs:
                expected = ", ".join(self._outputs) or "none"
                raise InvalidRequest(
                    f"output {name} is unknown: {self._model} has the outputs {expected}", param=name
                )
        for name, classes in work.classifications.items():
            if classes < 1:
                raise InvalidRequest(f"classification of {name} must be at least 1, got {classes}", param=name)
            if self._outputs[name].datatype == "BYTES":
                raise InvalidRequest(f"output {name} has no classes: it is BYTES", param=name)

    def _check_tensor(self, tensor: Tensor, spec: TensorSpec) -> tuple[int, ...]:
        """Return the tensor's shape without its batch dimension."""
        if tensor.datatype != spec.datatype:
            raise InvalidRequest(
                f"input {spec.name} of {self._model} must be {spec.datatype}, got {tensor.datatype}",
                param=spec.name,
            )
        inner = tensor.shape[1:] if self._max_batch_size else tensor.shape
        has_batch = not self._max_batch_size or len(tensor.shape) > 0
        if not has_batch or not matches(inner, spec.dims):
            expected = [-1, *spec.dims] if self._max_batch_size else [*spec.dims]
            raise InvalidRequest(
                f"input {spec.name} of {self._model} must have the shape {expected}, got {[*tensor.shape]}",
                param=spec.name,
            )
        return inner

    def _check_batch_size(self, tensor: Tensor, size: int | None) -> int:
        found = tensor.shape[0]
        if not 1 <= found <= self._max_batch_size:
            raise InvalidRequest(
                f"the batch size of input {tensor.name} must be between 1 and {self._max_batch_size}, got {found}",
                param=tensor.name,
            )
        if size not in (None, found):
            raise InvalidRequest(
                f"all inputs must have the same batch size: input {tensor.name} has {found}, others have {size}",
                param=tensor.name,
            )
        return found
