"""Strict validation of the server's answers by the SDK's types: no field is missing, and none is unknown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import pydantic
from pydantic import TypeAdapter

Kind = TypeVar("Kind")


def strictly(kind: type[Kind], data: str | bytes, ours: Iterable[str] = ()) -> Kind:
    """Validate JSON as a type of the SDK. `ours`: names of the fields that Headrace adds."""
    found = TypeAdapter(kind).validate_json(data, strict=True)
    extra = set(extras(found)) - set(ours)
    assert not extra, f"{kind.__name__} has no {', '.join(sorted(extra))}"
    return found


def extras(value: Any) -> Iterator[str]:
    """Yield the names of fields that the types do not define, at any depth."""
    if isinstance(value, pydantic.BaseModel):
        yield from value.model_extra or {}
        for name in value.model_fields_set:
            yield from extras(getattr(value, name, None))
    elif isinstance(value, dict):
        for each in value.values():
            yield from extras(each)
    elif isinstance(value, list):
        for each in value:
            yield from extras(each)
