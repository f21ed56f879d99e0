"""gRPC messages as the bodies that HTTP takes, so that one validator checks both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from pydantic_core import from_json

from producer_api.rpc.inference_pb2 import FollowRequest, GenerateRequest, JobRequest
from producer_api.rpc.prediction_pb2 import PredictRequest
from producer_api.schemas.jobs import JobSubmission
from shared.errors import InvalidRequest, MalformedBody
from shared.schemas.field_paths import field_path
from shared.schemas.openapi_bounds import ARRAYS
from shared.schemas.parsing import validate_plain

Proto = TypeVar("Proto", bound=Message)
Place = tuple[int | str, ...]


def parse(data: bytes, kind: type[Proto], *, strict_fields: bool) -> Proto:
    """Parse a message. Raises MalformedBody; InvalidRequest for an unknown field, if `strict_fields`."""
    try:
        message = kind.FromString(data)
    except DecodeError:
        raise MalformedBody(f"the message is not a valid {kind.DESCRIPTOR.full_name}") from None
    if strict_fields and (place := next(unknown_fields(message), None)) is not None:
        path = field_path(place)
        raise InvalidRequest(f"{path} is the number of an unknown field of {kind.DESCRIPTOR.full_name}", param=path)
    return message


def unknown_fields(message: Message, at: Place = ()) -> Iterator[Place]:
    """Yield the place of each unknown field in a message; its number stands for its name."""
    unknown = UnknownFieldSet(message)
    for i in range(len(unknown)):
        yield (*at, str(unknown[i].field_number))
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        if not field.is_repeated:
            yield from unknown_fields(value, (*at, field.name))
            continue
        for i, each in enumerate(value):
            yield from unknown_fields(each, (*at, field.name, i))


def to_submission(message: JobRequest) -> JobSubmission:
    """Return the equivalent body of POST /v1/jobs. Raises InvalidFields."""
    body = _plain(message)
    if "prompt_ids" in body:
        body["prompt"] = body.pop("prompt_ids").get("ids", [])
    for i, each in enumerate(body.get("tools", ())):
        each["type"] = "function"
        function = each.get("function", {})
        if "parameters" in function:
            function["parameters"] = _json(function["parameters"], f"tools[{i}].function.parameters")
    for chat_message in body.get("messages", ()):
        for call in chat_message.get("tool_calls", ()):
            call["type"] = "function"
    for name in ("chat_template_kwargs", "documents"):
        if name in body:
            body[name] = _json(body[name], name)
    if "tool_choice" in body:
        body["tool_choice"] = _choice(body["tool_choice"])
    return validate_plain(body, JobSubmission)


def chat_submission(message: PredictRequest) -> JobSubmission:
    """Return the equivalent body of POST /v1/jobs. Raises InvalidFields."""
    body = _plain(message)
    body["model"] = body.pop("model_name", "")
    body["messages"] = [{"role": "", "content": "", **each} for each in body.get("messages", ())]
    return validate_plain(body, JobSubmission)


def last_seen_seq(message: GenerateRequest | FollowRequest) -> int:
    """Return the last seq that the client has, or -1. Raises InvalidRequest."""
    if message.from_seq < 0:
        raise InvalidRequest(f"from_seq must be 0 or more, got {message.from_seq}", param="from_seq")
    return message.from_seq - 1


def _choice(given: Mapping[str, str]) -> Any:
    if "function" in given:
        return {"type": "function", "function": {"name": given["function"]}}
    return given.get("mode", "")


def _json(text: str, param: str) -> Any:
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        raise InvalidRequest(f"{param} must be valid JSON", param=param) from None


def _plain(message: Message, place: Place = ()) -> dict[str, Any]:
    """Return the fields that are set, by name. Raises InvalidRequest for a field with too many values."""
    return {field.name: _value(field, value, (*place, field.name)) for field, value in message.ListFields()}


def _value(field: FieldDescriptor, value: Any, place: Place) -> Any:
    if field.message_type is None:
        return list(value) if field.is_repeated else value
    if field.message_type.GetOptions().map_entry:
        return dict(value)
    if not field.is_repeated:
        return _plain(value, place)
    if len(value) > (most := ARRAYS[field.name]["maxItems"]):
        raise InvalidRequest(f"{field_path(place)} must have at most {most} items", param=field_path(place))
    return [_plain(each, (*place, i)) for i, each in enumerate(value)]
