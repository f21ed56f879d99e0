"""Triton's generate extension for models of tensors: each field of the body is an input, or a parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from producer_api.kserve.parameters import InferCall, make_work
from producer_api.kserve.served_models import TEXT_INPUT, ServedModel
from producer_api.kserve.tensor_data import from_json, to_json
from producer_api.schemas.kserve import GenerateBody
from shared.errors import HeadraceError, InvalidRequest
from shared.protocol import Infer, Parameter, Result, Tensor, TokenEvent
from shared.repository.spec import ModelSpec, TensorSpec
from shared.token_log.answer import Answer, end_of, ending

_decode_result = msgspec.json.Decoder(Result).decode


def fields_of(body: GenerateBody) -> dict[str, Any]:
    """Return the fields that are inputs or parameters, those within `parameters` included."""
    text = {} if body.text_input is None else {TEXT_INPUT: body.text_input}
    return {**(body.parameters or {}), **(body.model_extra or {}), **text}


def tensor_call(body: GenerateBody, model: ServedModel) -> InferCall:
    """Return the inference that a body asks for. Raises InvalidRequest."""
    inputs = {each.name: each for each in model.spec.inputs}
    tensors, parameters = [], {}
    for name, value in fields_of(body).items():
        if (wanted := inputs.get(name)) is not None:
            tensors.append(_tensor(wanted, value, model.spec))
        elif isinstance(value, bool | int | float | str):
            parameters[name] = value
        elif value is not None:
            raise InvalidRequest(f"{name[:64]} must be a boolean, number or string", param=name)
    given: Mapping[str, Parameter] = parameters
    work = make_work(Infer(inputs=tuple(tensors), version=model.version), given)
    return InferCall(body.id or "", work)


def results_of(event: TokenEvent) -> Iterator[Result]:
    """Yield the responses in an event: those of a decoupled model are tokens, the one of others is its end."""
    for token in event.tokens:
        yield _decode_result(token.text)
    if event.terminal is not None and event.terminal.result is not None:
        yield event.terminal.result


def only_result(answer: Answer) -> Result:
    """Return the only response to a request. Raises the error that it failed with; InvalidRequest for several."""
    end = end_of(answer)
    if end.result is not None:
        return end.result
    tokens = [token for _, choice in answer.choices for token in choice.tokens]
    if len(tokens) != 1:
        raise InvalidRequest(f"the model sent {len(tokens)} responses, generate needs one: use generate_stream")
    return _decode_result(tokens[0].text)


def response(call: InferCall, model: ServedModel, result: Result) -> bytes:
    """Return the JSON of one response. Raises InvalidRequest."""
    shown: dict[str, Any] = {"id": call.id} if call.id else {}
    shown |= {"model_name": model.spec.name, "model_version": result.version, **result.parameters}
    for tensor in result.tensors:
        data = to_json(tensor)
        shown[tensor.name] = _only(data) if tensor.size == 1 else data
    return msgspec.json.encode(shown)


class TensorFraming:
    """Frames of a stream of responses."""

    def __init__(self, call: InferCall, model: ServedModel) -> None:
        self._call = call
        self._model = model

    def opening(self) -> bytes:
        return b""

    def event(self, event: TokenEvent) -> bytes:
        frames = b"".join(frame(response(self._call, self._model, each)) for each in results_of(event))
        error = ending(event.terminal) if event.terminal is not None else None
        return frames if error is None else frames + self.interruption(error)

    def interruption(self, error: HeadraceError) -> bytes:
        return frame(msgspec.json.encode({"error": error.message}))


def frame(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _only(data: Sequence[Any] | msgspec.Raw) -> Any:
    return msgspec.Raw(bytes(data)[1:-1]) if isinstance(data, msgspec.Raw) else data[0]


def _tensor(wanted: TensorSpec, value: Any, spec: ModelSpec) -> Tensor:
    data = value if isinstance(value, list) else [value]
    dims = (-1, *wanted.dims) if spec.max_batch_size else wanted.dims
    return from_json(wanted.name, wanted.datatype, _shape(wanted.name, dims, len(data)), data)


def _shape(name: str, dims: Sequence[int], items: int) -> list[int]:
    """Return the shape of a list of items: the innermost free size is what is left, others are 1."""
    left = items
    for size in dims:
        if size != -1:
            left, rest = divmod(left, size) if size else (left, left)
            if rest:
                raise InvalidRequest(
                    f"{name} must have a number of items that fits its shape {list(dims)}", param=name
                )
    shape = []
    for size in reversed(dims):
        shape.append(left if size == -1 else size)
        left = 1 if size == -1 else left
    if left != 1:
        raise InvalidRequest(f"{name} must have a number of items that fits its shape {list(dims)}", param=name)
    return shape[::-1]
