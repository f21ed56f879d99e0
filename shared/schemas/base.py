"""What all request bodies have in common: their strictness, and how a text may be given."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetJsonSchemaHandler,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from shared.schemas.openapi_bounds import LIMITS, MAX_PARTS, add_bounds


class Body(BaseModel):
    """A request body: types are not coerced, unknown names are refused, numbers are finite."""

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, frozen=True, str_max_length=LIMITS.prompt_chars
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        add_bounds(handler.resolve_ref_schema(schema))
        return schema


def asking_for_nothing(
    idle: Mapping[str, tuple[Any, ...]], message: str, messages: Mapping[str, str] = MappingProxyType({})
) -> Any:
    """A validator of the fields that `idle` names, which are refused but for its values.

    Args:
        message: what a refusal says, where `messages` has nothing of its own for the field.
    """

    def check(value: Any, info: ValidationInfo) -> Any:
        name = info.field_name or ""
        if value not in idle[name]:
            raise PydanticCustomError("not_supported", messages.get(name, message))
        return value

    return field_validator(*idle)(check)


def _text(content: Any) -> Any:
    """OpenAI's list of text parts as one string."""
    if not isinstance(content, list):
        return content
    if not content:
        raise PydanticCustomError("content", "content must not be an empty list")
    if len(content) > MAX_PARTS:
        raise PydanticCustomError("content", "content has more than {most} parts", {"most": MAX_PARTS})
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise PydanticCustomError(
                "content", "part {i} is not of type text; other parts are not supported", {"i": i}
            )
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise PydanticCustomError("content", "part {i} must have a type and a text, nothing else", {"i": i})
    return "".join(part["text"] for part in content)


_TEXT_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
Text = Annotated[
    str,
    BeforeValidator(_text),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_PART, "minItems": 1}]}),
]
