"""A schema within a schema that is being translated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shared.validation.json_schema.parsing import Schema

# keywords about properties that `properties` does not list
_OTHERS = {"additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames"}


class Place(NamedTuple):
    """Place of a schema within the whole.

    Attributes:
        path: names of the keywords and properties that lead to it.
        closed: no other schema applies to the same value, so an object may be closed.
    """

    path: tuple[str, ...]
    closed: bool

    def child(self, *names: str, closed: bool = True) -> Place:
        return Place((*self.path, *names), self.closed and closed)


@dataclass
class Part:
    """A schema that is being translated.

    Attributes:
        place: its own place.
        inner: the place of schemas of parts of its values.
        combined: the place of schemas of the same values.
        out: the translation.
        also: schemas that apply too.
    """

    schema: dict[str, Any]
    place: Place
    inner: Place
    combined: Place
    out: dict[str, Any] = field(default_factory=dict)
    also: list[Schema] = field(default_factory=list)

    @property
    def closes(self) -> bool:
        """Return whether the schema lists the properties of an object, and neither it nor another says more."""
        kinds = self.schema.get("type")
        is_object = "object" in kinds if isinstance(kinds, list) else kinds == "object"
        return self.inner.closed and is_object and "properties" in self.schema and not _OTHERS & self.schema.keys()
