"""The checks of an inference request that need the description of its model."""

from __future__ import annotations

from collections.abc import Sequence

from shared.errors import InvalidRequest
from shared.protocol import Infer, Tensor
from shared.repository.spec import ModelSpec, TensorSpec

MAX_SHOWN = 16  # names in an error


def check_inputs(work: Infer, spec: ModelSpec) -> None:
    """Raise InvalidRequest, naming the input or output, for the first one that does not fit the model.

    A description without inputs or outputs is incomplete until the model is loaded; these are not checked then.
    """
    if spec.inputs:
        given = {tensor.name: tensor for tensor in work.inputs}
        _check_names("input", given, spec.inputs, spec.name)
        for each in spec.inputs:
            if each.name in given:
                _check_input(given[each.name], each, spec)
            elif not each.optional:
                raise InvalidRequest(f"input {each.name} of model {spec.name} is required", param=each.name)
        _check_batch(work.inputs, spec)
    if spec.outputs:
        _check_names("output", work.outputs, spec.outputs, spec.name)
    if spec.sequence_batching is not None and work.sequence is None:
        raise InvalidRequest(f"model {spec.name} needs a sequence_id other than 0", param="sequence_id")


def _check_names(
    kind: str, given: Sequence[str] | dict[str, Tensor], known: Sequence[TensorSpec], model: str
) -> None:
    names = [each.name for each in known]
    for name in given:
        if name not in names:
            raise InvalidRequest(
                f"unexpected {kind} {name[:128]!r} for model {model}; it has {', '.join(names[:MAX_SHOWN])}",
                param=name,
            )


def _check_input(tensor: Tensor, spec: TensorSpec, model: ModelSpec) -> None:
    if tensor.datatype != spec.datatype:
        raise InvalidRequest(
            f"input {tensor.name} of model {model.name} must have the datatype {spec.datatype}, got "
            f"{tensor.datatype}",
            param=tensor.name,
        )
    expected = (-1, *spec.dims) if model.max_batch_size else spec.dims
    if len(tensor.shape) != len(expected) or any(
        size not in (-1, given) for size, given in zip(expected, tensor.shape, strict=True)
    ):
        batched = ", with the batch first" if model.max_batch_size else ""
        raise InvalidRequest(
            f"input {tensor.name} of model {model.name} must have the shape {list(expected)}{batched}, got "
            f"{list(tensor.shape)}",
            param=tensor.name,
        )


def _check_batch(inputs: Sequence[Tensor], model: ModelSpec) -> None:
    """Raise InvalidRequest unless all inputs have the same batch size, which the model allows."""
    if not model.max_batch_size:
        return
    size = inputs[0].shape[0]
    if not 1 <= size <= model.max_batch_size:
        raise InvalidRequest(
            f"input {inputs[0].name} must have a batch size between 1 and {model.max_batch_size}, got {size}",
            param=inputs[0].name,
        )
    for tensor in inputs:
        if tensor.shape[0] != size:
            raise InvalidRequest(
                f"input {tensor.name} must have the batch size of the other inputs, {size}, got {tensor.shape[0]}",
                param=tensor.name,
            )
