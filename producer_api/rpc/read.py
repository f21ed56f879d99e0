"""gRPC's messages as the bodies that HTTP takes, so that one validator sees both. It knows nothing of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from pydantic_core import from_json

from producer_api.rpc.inference_pb2 import FollowRequest, GenerateRequest, JobRequest
from producer_api.schemas.jobs import JobSubmission
from shared.errors import InvalidRequest, MalformedBody
from shared.schemas.validation import field_path, validate_plain

Proto = TypeVar("Proto", bound=Message)


def parse(data: bytes, kind: type[Proto]) -> Proto:
    """`data` as a message that has nothing but known fields. Raises MalformedBody, InvalidRequest."""
    try:
        message = kind.FromString(data)
    except DecodeError:
        raise MalformedBody(f"the message is no {kind.DESCRIPTOR.full_name}") from None
    _check_known(message, ())
    return message


def submission(message: JobRequest) -> JobSubmission:
    """The body of POST /v1/jobs that says the same. Raises InvalidFields, by the names that both have."""
    body = _plain(message)
    if "prompt_ids" in body:
        body["prompt"] = body.pop("prompt_ids").get("ids", [])
    for i, each in enumerate(body.get("tools", ())):
        each["type"] = "function"
        function = each.get("function", {})
        if "parameters" in function:
            function["parameters"] = _json(function["parameters"], f"tools[{i}].function.parameters")
    for said in body.get("messages", ()):
        for call in said.get("tool_calls", ()):
            call["type"] = "function"
    if "tool_choice" in body:
        body["tool_choice"] = _choice(body["tool_choice"])
    return validate_plain(body, JobSubmission)


def seen(message: GenerateRequest | FollowRequest) -> int:
    """The last seq that the client has, -1 for none. Raises InvalidRequest."""
    if message.from_seq < 0:
        raise InvalidRequest("from_seq must be 0 or more", param="from_seq")
    return message.from_seq - 1


def _choice(given: Mapping[str, str]) -> Any:
    if "function" in given:
        return {"type": "function", "function": {"name": given["function"]}}
    return given.get("mode", "")


def _json(text: str, param: str) -> Any:
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        raise InvalidRequest(f"{param} is no JSON", param=param) from None


def _plain(message: Message) -> dict[str, Any]:
    """What is set in it, by name."""
    return {field.name: _value(field, value) for field, value in message.ListFields()}


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is None:
        return list(value) if field.is_repeated else value
    if field.message_type.GetOptions().map_entry:
        return dict(value)
    return [_plain(each) for each in value] if field.is_repeated else _plain(value)


def _check_known(message: Message, path: tuple[int | str, ...]) -> None:
    """Raises InvalidRequest for a field that we do not know: nothing is passed over in silence."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        where = field_path(path) or message.DESCRIPTOR.name
        raise InvalidRequest(f"{where} has a field {unknown[0].field_number} that is unknown here", param=where)
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for i, each in enumerate(value) if field.is_repeated else ((None, value),):
            _check_known(each, (*path, field.name) if i is None else (*path, field.name, i))
