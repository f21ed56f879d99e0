"""Holds what the server says to the SDK's own types: nothing is missing, and nothing there that they lack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import pydantic
from pydantic import TypeAdapter

Kind = TypeVar("Kind")


def strictly(kind: type[Kind], data: str | bytes, ours: Iterable[str] = ()) -> Kind:
    """`data`, JSON, as a `kind` of the SDK; `ours` names the fields that we add."""
    found = TypeAdapter(kind).validate_json(data, strict=True)
    extra = set(extras(found)) - set(ours)
    assert not extra, f"{kind.__name__} has no {', '.join(sorted(extra))}"
    return found


def extras(value: Any) -> Iterator[str]:
    """The names of fields that the types do not know, at any depth."""
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
