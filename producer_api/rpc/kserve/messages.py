"""Inference as gRPC messages: requests into calls, results into responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from producer_api.kserve.infer_response import outputs_of
from producer_api.kserve.parameters import (
    EMPTY_FINAL_RESPONSE,
    FINAL_RESPONSE,
    InferCall,
    OutputForm,
    make_work,
    output_form,
    refuse_shared_memory,
    take_flag,
)
from producer_api.kserve.tensor_data import from_json, pack_items
from producer_api.rpc.kserve import kserve_pb2 as pb
from shared.errors import HeadraceError, InvalidRequest
from shared.protocol import DATA_TYPES, DataType, Infer, Parameter, Result, Tensor
from shared.repository.spec import ModelSpec

# the field of `contents` that a datatype has
CONTENTS: dict[DataType, str] = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    **{"INT64": "int64_contents", "UINT64": "uint64_contents"},
    **{"FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents"},
}
BINARY = OutputForm(binary=True)


def infer_call(message: pb.ModelInferRequest) -> InferCall:
    """Return the inference that a message asks for. Raises InvalidRequest, NotSupported."""
    parameters = plain(message.parameters)
    empty_final = take_flag(parameters, EMPTY_FINAL_RESPONSE)
    forms = {each.name: output_form(each.name, plain(each.parameters), binary=True) for each in message.outputs}
    work = Infer(inputs=_tensors(message), outputs=tuple(forms), version=message.model_version)
    return InferCall(message.id, make_work(work, parameters), forms, BINARY, empty_final)


def plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as Python values. Raises InvalidRequest for one without a value."""
    found = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidRequest(f"the parameter {name[:64]!r} must have a value", param="parameters")
        found[name] = getattr(parameter, kind)
    return found


def response(
    result: Result, call: InferCall, spec: ModelSpec, *, final: bool | None = None
) -> pb.ModelInferResponse:
    """Return the response for a result. `final` is said in a stream only. Raises InvalidRequest."""
    message = pb.ModelInferResponse(model_name=spec.name, model_version=result.version, id=call.id)
    for tensor in outputs_of(result, call, spec):
        message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_output_contents.append(tensor.data)
    for name, value in result.parameters.items():
        _set(message.parameters[name], value)
    if final is not None:
        message.parameters[FINAL_RESPONSE].bool_param = final
    return message


def empty_final(request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
    """Return the response that ends the responses of a decoupled model."""
    return pb.ModelStreamInferResponse(infer_response=_last(request))


def stream_error(request: pb.ModelInferRequest, error: HeadraceError) -> pb.ModelStreamInferResponse:
    return pb.ModelStreamInferResponse(error_message=error.message, infer_response=_last(request))


def _last(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    message = pb.ModelInferResponse(
        id=request.id, model_name=request.model_name, model_version=request.model_version
    )
    message.parameters[FINAL_RESPONSE].bool_param = True
    return message


def _set(parameter: pb.InferParameter, value: Parameter) -> None:
    match value:
        case bool():
            parameter.bool_param = value
        case int():
            parameter.int64_param = value
        case float():
            parameter.double_param = value
        case _:
            parameter.string_param = value


def _tensors(message: pb.ModelInferRequest) -> tuple[Tensor, ...]:
    raw: Sequence[bytes] = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequest(
            f"raw_input_contents must have an entry for each of {len(message.inputs)} inputs, got {len(raw)}",
            param="raw_input_contents",
        )
    return tuple(_tensor(given, raw[i] if raw else None) for i, given in enumerate(message.inputs))


def _tensor(given: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Tensor:
    name = given.name
    if given.parameters:
        refuse_shared_memory(f"input {name}", plain(given.parameters))
    if given.datatype not in DATA_TYPES:
        raise InvalidRequest(
            f"the datatype of input {name} must be one of {', '.join(DATA_TYPES)}, got {given.datatype[:32]!r}",
            param=name,
        )
    datatype: DataType = given.datatype
    if (raw is None) != given.HasField("contents"):
        raise InvalidRequest(
            f"input {name} must have either contents or an entry of raw_input_contents", param=name
        )
    if raw is not None:
        return Tensor(name, datatype, tuple(given.shape), raw)
    return _from_contents(given, datatype)


def _from_contents(given: pb.ModelInferRequest.InferInputTensor, datatype: DataType) -> Tensor:
    field = CONTENTS.get(datatype)
    if field is None:
        raise InvalidRequest(
            f"input {given.name} of {datatype} must be sent in raw_input_contents", param=given.name
        )
    if any(each.name != field for each, _ in given.contents.ListFields()):
        raise InvalidRequest(
            f"the contents of input {given.name} must be in {field} for {datatype}", param=given.name
        )
    items = getattr(given.contents, field)
    if datatype == "BYTES":
        return Tensor(given.name, datatype, tuple(given.shape), pack_items(items))
    return from_json(given.name, datatype, given.shape, list(items))
