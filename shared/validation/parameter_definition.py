"""Definition of one request parameter: its range check, and its description for schemas and documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal

from shared.errors import InvalidRequest

MAX_SHOWN_CHARS = 32  # of a wrong number in an error: an integer may have thousands of digits


class Api(StrEnum):
    """The APIs with parameters, by their column in docs/api.md."""

    CHAT = "chats"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    EMBEDDINGS = "embeddings"
    JOBS = "jobs, gRPC, Kafka"
    LLM = "`LLM`"


Kind = Literal[
    "integer", "number", "boolean", "string", "list of strings", "list of integers", "object", "list of objects"
]
_ENTRIES = {"list of strings": "strings", "list of integers": "numbers"}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a request.

    Attributes:
        names: the fields that set it, for each API that takes it; empty means `name`.
        default: the value that its absence means; `default_text` says it where a value cannot.
        off: values that mean the same as absence.
        minimum, maximum: inclusive, unless `above_minimum`. Bounds on each value of an object or a list.
        max_items, max_chars: of a list or object; of a string, or each string of a list.
        setting: the setting that lowers `maximum`, or that is the maximum if there is no fixed one.
        limit: the attribute of `Limits` that holds the maximum at run time.
    """

    name: str
    kind: Kind
    description: str
    names: Mapping[Api, tuple[str, ...]] = field(repr=False)
    default: Any = None
    default_text: str = ""
    off: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above_minimum: bool = False
    max_items: int | None = None
    max_chars: int | None = None
    setting: str | None = None
    limit: str | None = None

    def given(self, value: Any) -> Any:
        """Return a body's value as the wire has it; None for an absent one and for those that mean the same."""
        if isinstance(value, list):
            value = tuple(value)
        return None if value in self.off else value

    def check_range(self, value: float, maximum: float | None = None) -> None:
        """Raise InvalidRequest for a number out of range; NaN is in no range.

        Args:
            maximum: the maximum at run time, where it is not the table's.
        """
        low, high = self.minimum, self.maximum if maximum is None else maximum
        assert low is not None and high is not None
        if not ((low < value if self.above_minimum else low <= value) and value <= high):
            shown = str(value)[:MAX_SHOWN_CHARS]
            raise InvalidRequest(f"{self.name} must be {self._range(high)}, got {shown}", param=self.name)

    def check_items(self, items: Sequence[str] | Sequence[int]) -> None:
        """Raise InvalidRequest for a list with too many entries, or with one that is out of bounds."""
        assert self.max_items is not None
        if len(items) > self.max_items:
            kind = _ENTRIES.get(self.kind, "entries")
            raise InvalidRequest(
                f"{self.name} must have at most {self.max_items} {kind}, got {len(items)}", param=self.name
            )
        for item in items:
            if isinstance(item, int):
                self.check_range(item)
            elif self.max_chars is not None and not 0 < len(item) <= self.max_chars:
                raise InvalidRequest(
                    f"each string of {self.name} must have between 1 and {self.max_chars} characters",
                    param=self.name,
                )

    @property
    def range_text(self) -> str:
        """The allowed values in words; empty if the type is the only bound."""
        parts = []
        if self.max_items is not None:
            items = _ENTRIES.get(self.kind, "entries")
            parts.append(f"at most {self.max_items} {items}")
        if self.max_chars is not None:
            parts.append(f"at most {self.max_chars} characters{' each' if self.max_items else ''}")
        if self.maximum is not None:
            parts.append(self._range(self.maximum))
            if self.setting:
                parts.append(f"and at most the setting {self.setting}")
        elif self.setting:
            parts.append(f"above 0 and at most the setting {self.setting}")
        return ", ".join(parts)

    @property
    def json_schema_bounds(self) -> Mapping[str, Mapping[str, float]]:
        """The bounds as JSON Schema keywords, by the JSON type that they apply to.

        The keys "items" and "additionalProperties" hold the bounds of a list's items and of an object's values.
        """
        numbers: dict[str, float] = {}
        if self.minimum is not None and self.maximum is not None:
            low = "exclusiveMinimum" if self.above_minimum else "minimum"
            numbers = {low: self.minimum, "maximum": self.maximum}
        chars = {} if self.max_chars is None else {"maxLength": self.max_chars}
        if self.kind == "object":
            items = {} if self.max_items is None else {"maxProperties": self.max_items}
            return {"object": items, "additionalProperties": numbers}
        if self.kind.startswith("list of "):
            return {"array": {"maxItems": self.max_items or 0}, "items": chars or numbers, "string": chars}
        return {self.kind: chars if self.kind == "string" else numbers}

    @property
    def default_shown(self) -> str:
        return self.default_text or _number(self.default)

    def text(self, default: object = None, maximum: float | None = None) -> str:
        """Return description, range and default in one line, for schemas and comments.

        Args:
            default, maximum: of one API, where they differ from the table's.
        """
        allowed = self.range_text if maximum is None else self._range(maximum)
        if default is None:
            default = self.default_shown
        parts = (self.description, allowed, f"default: {default}" if default else "")
        return "; ".join(part for part in parts if part)

    def _range(self, maximum: float) -> str:
        assert self.minimum is not None
        low, high = _number(self.minimum), _number(maximum)
        return f"above {low} and at most {high}" if self.above_minimum else f"between {low} and {high}"


def _number(value: object) -> str:
    """Return a value without exponent or trailing zeros, "" for None: 0.00001, 2, false."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def names_by_api(*apis: Api, **others: tuple[Api, ...]) -> Mapping[Api, tuple[str, ...]]:
    """Return the names in each API: the parameter's own in `apis`, and the given ones in `others`."""
    names: dict[Api, tuple[str, ...]] = dict.fromkeys(apis, ())
    for name, users in others.items():
        for api in users:
            names[api] = (*names.get(api, ()), name)
    return MappingProxyType(names)
