"""Parsing of JSON bodies, with an error for each wrong field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from shared.errors import HeadraceError, InvalidRequest, MalformedBody
from shared.validation.json_text import containers

MAX_NAME_CHARS = 64  # of a client's field name in an error
MAX_ERRORS = 1000  # beyond that, only their number is reported
MAX_CONTAINERS = 50_000  # objects and arrays of a body; pydantic holds the interpreter's lock about 0.4 µs for each

Model = TypeVar("Model", bound=BaseModel)
Given = TypeVar("Given")


class InvalidFields(InvalidRequest):
    """A body with wrong fields; `fields` holds every (param, message) found."""

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        param, message = fields[0]
        super().__init__(f"{param}: {message}" if param else message, param=param or None)
        self.fields = tuple(fields)

    @classmethod
    def from_validation(cls, error: ValidationError) -> HeadraceError:
        """Return pydantic's findings as an error; a body that is not JSON becomes MalformedBody."""
        if (count := error.error_count()) > MAX_ERRORS:
            return InvalidRequest(f"{count} fields are wrong or unknown")
        found = error.errors(include_url=False, include_input=False)
        if found[0]["type"] == "json_invalid":
            return MalformedBody(found[0]["msg"])
        return cls([(field_path(item["loc"]), _message(item)) for item in found])


def _message(found: ErrorDetails) -> str:
    """Return pydantic's message, or one of our own where pydantic's quotes the client's input."""
    if found["type"] == "union_tag_invalid":
        return f"{found['ctx']['discriminator']} must be one of {found['ctx']['expected_tags']}"
    return found["msg"]


def field_path(loc: Sequence[int | str]) -> str:
    """Return ('messages', 0, 'role') as messages[0].role. Names may be the client's, of any length, and are cut."""
    path = ""
    for part in loc:
        path += (
            f"[{part}]" if isinstance(part, int) else f".{part[:MAX_NAME_CHARS]}" if path else part[:MAX_NAME_CHARS]
        )
    return path


def validate_plain(value: dict[str, Any], schema: type[Model]) -> Model:
    """Return a parsed JSON `value` as `schema`. Raise InvalidFields with the wrong fields."""
    return _checked(schema.model_validate, value)


def validate(data: bytes, schema: type[Model]) -> Model:
    """Return the JSON `data` as `schema`.

    Raises:
        MalformedBody: `data` is not JSON, or has too many objects and arrays.
        InvalidFields: with the wrong fields.
    """
    if (count := containers(data, MAX_CONTAINERS)) > MAX_CONTAINERS:
        raise MalformedBody(f"the body must have at most {MAX_CONTAINERS} arrays and objects, got {count}")
    return _checked(schema.model_validate_json, data)


def _checked(check: Callable[[Given], Model], given: Given) -> Model:
    try:
        return check(given)
    except ValidationError as error:
        raise InvalidFields.from_validation(error) from None
