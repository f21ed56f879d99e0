"""Inputs and outputs that a model's file declares, and their comparison with the model's description."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from shared.errors import ConfigError
from shared.repository.spec import DynamicBatching, ModelSpec, TensorSpec

DEFAULT_MAX_BATCH_SIZE = 4  # Triton's, for models that declare a batch dimension


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a model with all their dimensions, -1 for any size.

    Attributes:
        max_batch_size: for a model whose description gives none, if the first dimension of each tensor is free.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE

    @property
    def fixed(self) -> TensorSpec | None:
        """Return a tensor whose first dimension is no batch dimension."""
        return next((each for each in (*self.inputs, *self.outputs) if each.dims[:1] != (-1,)), None)

    def complete(self, spec: ModelSpec) -> ModelSpec:
        """Return the description with what it leaves open. Raises ConfigError if the two contradict each other."""
        spec = self._with_batching(spec)
        sequence = spec.sequence_batching
        controls = {each.name for each in sequence.control_input} if sequence else set()
        states = sequence.state if sequence else ()
        fed = controls | {each.input_name for each in states}
        kept = {each.output_name for each in states}
        inputs = _complete(spec, "input", spec.inputs, self.inputs, fed)
        outputs = _complete(spec, "output", spec.outputs, self.outputs, kept)
        missing = {each.name for each in self.inputs if not each.optional} - {each.name for each in inputs} - fed
        if missing:
            raise ConfigError(f"model {spec.name} lacks its inputs {', '.join(sorted(missing))}", param="input")
        return msgspec.structs.replace(spec, inputs=inputs, outputs=outputs)

    def _with_batching(self, spec: ModelSpec) -> ModelSpec:
        fixed = self.fixed
        if spec.max_batch_size > 0 and fixed is not None:
            raise ConfigError(
                f"max_batch_size of model {spec.name} must be 0: {fixed.name} has the shape {list(fixed.dims)}, "
                "whose first dimension is not free",
                param="max_batch_size",
            )
        if spec.max_batch_size > 0 or fixed is not None or spec.inputs or spec.outputs:
            return spec
        batching = spec.dynamic_batching
        if batching is None and spec.sequence_batching is None:
            batching = DynamicBatching()
        return msgspec.structs.replace(spec, max_batch_size=self.max_batch_size, dynamic_batching=batching)


def _complete(
    spec: ModelSpec, kind: str, declared: tuple[TensorSpec, ...], found: tuple[TensorSpec, ...], other: set[str]
) -> tuple[TensorSpec, ...]:
    """Return the declared tensors, compared with those that were found, or else the found ones without `other`."""
    if not declared:
        return tuple(_without_batch(spec, each) for each in found if each.name not in other)
    by_name = {each.name: each for each in found}
    for tensor in declared:
        if tensor.name not in by_name:
            raise ConfigError(
                f"model {spec.name} has no {kind} {tensor.name}; it has {', '.join(by_name)}", param=kind
            )
        _compare(spec, kind, tensor, by_name[tensor.name])
    return declared


def _without_batch(spec: ModelSpec, tensor: TensorSpec) -> TensorSpec:
    """Return the tensor as a description declares it, which has no batch dimension, but at least one other."""
    if not spec.max_batch_size:
        return tensor if tensor.dims else msgspec.structs.replace(tensor, dims=(1,), reshape=())
    dims = tensor.dims[1:]
    return msgspec.structs.replace(tensor, dims=dims or (1,), reshape=None if dims else ())


def _compare(spec: ModelSpec, kind: str, declared: TensorSpec, found: TensorSpec) -> None:
    if declared.datatype != found.datatype:
        raise ConfigError(
            f"{kind} {declared.name} of model {spec.name} must have the data type {found.datatype}, "
            f"got {declared.datatype}",
            param=kind,
        )
    own = declared.dims if declared.reshape is None else declared.reshape
    dims = found.dims[1:] if spec.max_batch_size else found.dims
    # a free dimension would accept sizes that the model refuses; a model may return one that the description fixes
    if len(own) != len(dims) or any(size not in (-1, ours) for size, ours in zip(dims, own, strict=True)):
        raise ConfigError(
            f"{kind} {declared.name} of model {spec.name} must have the dimensions {list(dims)}, got {list(own)}",
            param=kind,
        )
