"""Patterns for the names that `propertyNames` allows."""

from __future__ import annotations

from typing import Any

from shared.validation.json_schema import keywords
from shared.validation.json_schema.ecma_regex import UnsupportedRegexError, escaped, to_rust


def pattern_of_names(schema: Any) -> str | None:
    """Return a pattern for the names that fit a schema; None if there is no simple one."""
    asserted = {
        name: value for name, value in keywords.asserted(schema).items() if (name, value) != ("type", "string")
    }
    try:
        if asserted.keys() == {"pattern"} and isinstance(asserted["pattern"], str):
            return to_rust(asserted["pattern"])
    except UnsupportedRegexError:
        return None
    names = asserted.get("enum")
    if (
        len(asserted) == 1
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and keywords.is_writable(names)
    ):
        return f"^(?:{'|'.join(map(escaped, names))})$"
    return None
