"""Rewriting of a JSON schema so that the grammar compiler enforces keywords that it would overlook.

Every value that fits the rewritten schema fits the original; the converse need not hold.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from shared.validation.json_schema import UNSAFE, Schema, subschemas, types_of

_MONTHS = r"(0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8])"
_YEAR = r"(000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})"
_LEAP = r"(\d\d(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)-02-29"
DATE = f"({_YEAR}-({_MONTHS})|{_LEAP})"
TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"  # no leading zero, which some parsers read as octal
_GROUPS = "([0-9a-f]{1,4}(:[0-9a-f]{1,4}){0,2})?"
FORMAT_PATTERNS = {
    "date": f"^{DATE}$",
    "date-time": f"^{DATE}T{TIME}$",
    "time": f"^{TIME}$",
    "ipv4": rf"^{BYTE}(\.{BYTE}){{3}}$",
    "ipv6": f"^([0-9a-f]{{1,4}}(:[0-9a-f]{{1,4}}){{7}}|{_GROUPS}::{_GROUPS})$",
}
PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "boolean": bool,
    "null": type(None),
    "array": list,
    "object": dict,
}


def rewrite_schema(schema: Schema) -> Schema:
    """Return a rewritten copy of `schema`."""
    found = copy.deepcopy(schema)
    for part in list(subschemas(found)):
        _rewrite_in_place(part)
    return found


def rewrite_schema_text(text: str) -> str:
    """Rewrite a schema given as JSON text; the order of properties is kept."""
    return json.dumps(rewrite_schema(json.loads(text)))


def _rewrite_in_place(schema: dict[str, Any]) -> None:
    types = types_of(schema)
    if types and "type" not in schema:
        schema["type"] = types if len(types) > 1 else types[0]
    if "enum" in schema and types:
        schema["enum"] = [value for value in schema["enum"] if _is_any_of(value, types)]
    if (pattern := FORMAT_PATTERNS.get(str(schema.get("format")))) is not None:
        del schema["format"]
        schema["pattern"] = pattern
    if UNSAFE.search(str(schema.get("pattern", ""))):
        del schema["pattern"]
    if isinstance(required := schema.get("required"), list):
        others = schema.get("additionalProperties")
        for name in required:
            schema.setdefault("properties", {}).setdefault(name, others if isinstance(others, dict) else {})


def _is_any_of(value: Any, types: list[str]) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number" in types or ("integer" in types and float(value).is_integer())
    return any(isinstance(value, PYTHON_TYPES[kind]) for kind in types if kind in PYTHON_TYPES)
