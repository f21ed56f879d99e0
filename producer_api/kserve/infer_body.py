"""Body of a request for inference over HTTP: JSON and the binary data behind it, or the data of one input."""

from __future__ import annotations

from math import prod

from producer_api.kserve.parameters import (
    InferCall,
    OutputForm,
    make_work,
    output_form,
    refuse_shared_memory,
    take_flag,
)
from producer_api.kserve.tensor_data import from_json, pack_items
from producer_api.schemas.kserve import InferBody, InferInput
from shared.errors import InvalidRequest
from shared.protocol import ITEM_BYTES, Infer, Parameter, Tensor
from shared.repository.spec import ModelSpec
from shared.schemas.parsing import validate

HEADER = "Inference-Header-Content-Length"


def header_length(given: str | None, size: int) -> int:
    """Return the length of the JSON in a body of `size` bytes: 0 for raw data. Raises InvalidRequest."""
    if given is None:
        return size
    if not (given.isascii() and given.isdecimal() and len(given) <= 16 and int(given) <= size):
        raise InvalidRequest(
            f"{HEADER} must be a number between 0 and {size}, the length of the body", param=HEADER
        )
    return int(given)


def parse(data: bytes, length: int, version: str, *, strict_fields: bool) -> tuple[InferCall, InferBody]:
    """Read JSON of `length` bytes and the binary data behind it.

    Raises InvalidRequest, MalformedBody, NotSupported.
    """
    body = validate(data[:length], InferBody, strict_fields=strict_fields)
    parameters: dict[str, Parameter] = dict(body.parameters or {})
    binary = take_flag(parameters, "binary_data_output")
    outputs = body.outputs or ()
    forms = {each.name: output_form(each.name, each.parameters or {}, binary=binary) for each in outputs}
    work = Infer(inputs=_tensors(body, data, length), outputs=tuple(forms), version=version)
    return InferCall(body.id or "", make_work(work, parameters), forms, OutputForm(binary)), body


def parse_raw(data: bytes, spec: ModelSpec, version: str) -> InferCall:
    """Read a body that is the data of the only input of a model. Raises InvalidRequest."""
    if len(spec.inputs) != 1:
        raise InvalidRequest(
            f"a request without JSON needs a model with one input, but {spec.name} has {len(spec.inputs)}",
            param=HEADER,
        )
    [wanted] = spec.inputs
    if wanted.datatype == "BYTES":
        if any(size != 1 for size in wanted.dims):
            raise InvalidRequest(
                f"input {wanted.name} has the shape {list(wanted.dims)}; a request without JSON needs one item",
                param=wanted.name,
            )
        shape, content = list(wanted.dims), pack_items([data])
    else:
        shape, content = _deduced(wanted.name, wanted.dims, len(data) // ITEM_BYTES[wanted.datatype]), data
    batch = [1] if spec.max_batch_size else []
    tensor = Tensor(wanted.name, wanted.datatype, (*batch, *shape), content)
    return InferCall("", Infer(inputs=(tensor,), version=version), default=OutputForm(binary=True))


def _deduced(name: str, dims: tuple[int, ...], items: int) -> list[int]:
    """Return the shape that a number of items has. Raises InvalidRequest."""
    if dims.count(-1) > 1:
        raise InvalidRequest(
            f"input {name} has the shape {list(dims)}; a request without JSON needs one with at most one free size",
            param=name,
        )
    fixed = max(1, prod(size for size in dims if size != -1))
    return [items // fixed if size == -1 else size for size in dims]


def _tensors(body: InferBody, data: bytes, position: int) -> tuple[Tensor, ...]:
    """Return the inputs; binary data begin at `position`."""
    found = []
    for given in body.inputs:
        parameters = given.parameters or {}
        refuse_shared_memory(f"input {given.name}", parameters)
        size = parameters.get("binary_data_size")
        if (size is None) == (given.data is None):
            raise InvalidRequest(
                f"input {given.name} must have either data or the parameter binary_data_size", param=given.name
            )
        if given.data is not None:
            found.append(from_json(given.name, given.datatype, given.shape, given.data))
            continue
        end = position + _binary_size(given, size, len(data) - position)
        found.append(Tensor(given.name, given.datatype, tuple(given.shape), data[position:end]))
        position = end
    if position < len(data):
        last = body.inputs[-1].name if body.inputs else ""
        raise InvalidRequest(
            f"{len(data) - position} bytes are left over after the last input, {last}", param=last or None
        )
    return tuple(found)


def _binary_size(given: InferInput, size: Parameter | None, left: int) -> int:
    if type(size) is not int or not 0 <= size <= left:
        raise InvalidRequest(
            f"binary_data_size of input {given.name} must be an integer between 0 and {left}, the number of bytes "
            "that the body has left for it",
            param=given.name,
        )
    return size
