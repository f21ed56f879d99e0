"""What all request bodies have in common: their strictness, and how a text may be given."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema
from pydantic_core import PydanticCustomError


class Body(BaseModel):
    """A request body: types are not coerced, unknown names are refused, numbers are finite."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


def _text(content: Any) -> Any:
    """OpenAI's list of text parts as one string."""
    if not isinstance(content, list):
        return content
    if not content:
        raise PydanticCustomError("content", "content must not be an empty list")
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
