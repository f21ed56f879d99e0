"""Fields of a body that its schema does not declare, or ignores: reported by their paths, or refused.

A field with null counts as absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from itertools import islice
from typing import Any, get_args

from pydantic import BaseModel

from shared.schemas.base import IgnoredObject
from shared.schemas.field_paths import MAX_NAME_CHARS, Place, field_path

HEADER = "x-headrace-ignored-fields"
MAX_REPORTED = 32
MAX_REPORT_CHARS = 1024
MORE = "..."  # last in a report that does not name all of them
_UNSAFE = re.compile(r"[^A-Za-z0-9_$:.\[\]-]")  # in a header; names are the client's


def unknown_fields(body: BaseModel, at: tuple[int | str, ...] = ()) -> Iterator[tuple[Place, type[BaseModel]]]:
    """Yield the place of each unknown field in a parsed body, with the schema of the object that has it.

    An ignored object counts as one.
    """
    if isinstance(body, IgnoredObject):
        yield at, type(body)
        return
    if extra := body.model_extra:
        for name, value in extra.items():
            if value is not None:
                yield (*at, name), type(body)
    given = body.model_fields_set
    for name, alias in _fields_with_objects(type(body)):
        if name not in given:
            continue
        value = getattr(body, name)
        if isinstance(value, list):
            for i, each in enumerate(value):
                if isinstance(each, BaseModel):
                    yield from unknown_fields(each, (*at, alias, i))
        elif isinstance(value, BaseModel):
            yield from unknown_fields(value, (*at, alias))


@cache
def _fields_with_objects(schema: type[BaseModel]) -> Sequence[tuple[str, str]]:
    """Return the attributes, with their names in JSON, whose values may have unknown fields."""
    return [
        (name, field.alias or name) for name, field in schema.model_fields.items() if _has_object(field.annotation)
    ]


def _has_object(annotation: Any) -> bool:
    """Return whether a type is a schema of an object, or a union, list or annotation of one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(map(_has_object, get_args(annotation)))


def ignored_fields(body: BaseModel) -> str:
    """Return the unknown fields of a body as the value of HEADER; or an empty string."""
    return report(field_path(place) for place, _ in unknown_fields(body))


def report(paths: Iterator[str]) -> str:
    """Return paths of fields as the value of HEADER: a bounded number of them, in characters of a header."""
    text = ""
    for path in islice(paths, MAX_REPORTED):
        more = f"{', ' if text else ''}{_UNSAFE.sub('?', path)}"
        if len(text) + len(more) > MAX_REPORT_CHARS:
            return f"{text}, {MORE}"
        text += more
    return f"{text}, {MORE}" if next(paths, None) is not None else text


def refusals(body: BaseModel) -> Sequence[tuple[str, str]]:
    """Return the path of each unknown field with the reason to refuse it."""
    found = islice(unknown_fields(body), MAX_REPORTED)
    return [(field_path(place), _reason(str(place[-1]), schema)) for place, schema in found]


def _reason(name: str, schema: type[BaseModel]) -> str:
    known = [field.alias or each for each, field in schema.model_fields.items()]
    near = get_close_matches(name[:MAX_NAME_CHARS], known, n=1, cutoff=0.75)
    return f"unknown field; did you mean {near[0]}?" if near else "unknown field"
