"""What all request bodies have in common: their strictness, and how a text may be given."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from shared.schemas.bounds import LIMITS, MOST_PARTS, tell_bounds


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
        tell_bounds(handler.resolve_ref_schema(schema))
        return schema


def _text(content: Any) -> Any:
    """OpenAI's list of text parts as one string."""
    if not isinstance(content, list):
        return content
    if not content:
        raise PydanticCustomError("content", "content must not be an empty list")
    if len(content) > MOST_PARTS:
        raise PydanticCustomError("content", "content has more than {most} parts", {"most": MOST_PARTS})
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
