"""Inputs of a request as the arrays that a model takes."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from shared.protocol import Infer, Tensor
from shared.repository.input_check import check_inputs
from shared.repository.spec import ModelSpec
from workers.predictors.interface import Array
from workers.predictors.tensors.arrays import to_array
from workers.predictors.tensors.shapes import reshape


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
        self._spec = spec
        self._inputs = {each.name: each for each in spec.inputs}
        self._batch_dims = 1 if spec.max_batch_size else 0

    def check(self, work: Infer) -> CheckedInputs:
        """Raise InvalidRequest, naming the tensor, for the first one that does not match the description."""
        check_inputs(work, self._spec)
        shapes = tuple(
            (
                tensor.name,
                None if self._inputs[tensor.name].allow_ragged_batch else tensor.shape[self._batch_dims :],
            )
            for tensor in sorted(work.inputs, key=lambda tensor: tensor.name)
        )
        size = work.inputs[0].shape[0] if self._batch_dims else 1
        return CheckedInputs(size, (shapes, tuple(sorted(work.parameters.items()))))

    def read(self, work: Infer) -> dict[str, Array]:
        """Return the arrays of checked inputs, in the shapes that the model takes."""
        return {tensor.name: self._read(tensor) for tensor in work.inputs}

    def _read(self, tensor: Tensor) -> Array:
        spec = self._inputs[tensor.name]
        array = to_array(tensor)
        if spec.allow_ragged_batch:
            return array.ravel()
        if spec.reshape is None:
            return array
        batch, inner = tensor.shape[: self._batch_dims], tensor.shape[self._batch_dims :]
        return array.reshape(*batch, *reshape(inner, spec.dims, spec.reshape))
