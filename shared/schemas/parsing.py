"""Reads JSON into its schema, and says of what does not fit which fields are wrong. It does not know who asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from shared.errors import HeadraceError, InvalidRequest, MalformedBody

SHOWN = 64  # characters of a name
MOST_ERRORS = 1000  # that are told one by one

Model = TypeVar("Model", bound=BaseModel)
Given = TypeVar("Given")


class InvalidFields(InvalidRequest):
    """A body whose fields are wrong; `fields` holds every (param, message) found."""

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        param, message = fields[0]
        super().__init__(f"{param}: {message}" if param else message, param=param or None)
        self.fields = tuple(fields)

    @classmethod
    def of(cls, error: ValidationError) -> HeadraceError:
        """pydantic's findings; a body that is no JSON at all becomes MalformedBody."""
        if (count := error.error_count()) > MOST_ERRORS:
            return InvalidRequest(f"{count} fields are wrong or unknown")
        found = error.errors(include_url=False, include_input=False)
        if found[0]["type"] == "json_invalid":
            return MalformedBody(found[0]["msg"])
        return cls([(field_path(item["loc"]), _message(item)) for item in found])


def _message(found: ErrorDetails) -> str:
    """pydantic's words, but for those that quote what was sent."""
    if found["type"] == "union_tag_invalid":
        return f"{found['ctx']['discriminator']} must be one of {found['ctx']['expected_tags']}"
    return found["msg"]


def field_path(loc: Sequence[int | str]) -> str:
    """('messages', 0, 'role') as messages[0].role. Names may be the client's, of any length: they are cut."""
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part[:SHOWN]}" if path else part[:SHOWN]
    return path


def validate_plain(value: dict[str, Any], schema: type[Model]) -> Model:
    """What JSON with that `value` would be. Raises InvalidFields with the fields at fault."""
    return _checked(schema.model_validate, value)


def validate(data: bytes, schema: type[Model]) -> Model:
    """`data` as `schema`. Raises MalformedBody where it is no JSON, InvalidFields with the fields at fault."""
    return _checked(schema.model_validate_json, data)


def _checked(check: Callable[[Given], Model], given: Given) -> Model:
    try:
        return check(given)
    except ValidationError as error:
        raise InvalidFields.of(error) from None
