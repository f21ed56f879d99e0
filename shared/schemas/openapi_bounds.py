"""Bounds in the JSON Schemas of bodies, of fields that are no parameters, by the field's name.

pydantic or `shared.validation.request_limits` enforces them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field

from shared.validation.request_limits import Limits
from shared.validation.sampling_parameters import MAX_TOKEN_ID

LIMITS = Limits()
MAX_CONTENT_PARTS = 1024  # in one content
MAX_SCHEMA_KEYS = 10_000  # more do not fit into the characters that a schema may have

Element = TypeVar("Element")
# Only the first wrong element is reported: finding and reporting millions of them would take seconds.
Items = Annotated[list[Element], Field(fail_fast=True)]
Short = Annotated[str, Field(max_length=512)]  # an id or a name of the client's, echoed or unused

Node = dict[str, Any]
Bounds = Mapping[str, float]


# "x[]" is an item of x
NUMBERS: Mapping[str, Bounds] = {name: {"minimum": 0, "maximum": MAX_TOKEN_ID} for name in ("prompt[]", "inputs[]")}
ARRAYS: Mapping[str, Bounds] = {
    "messages": {"maxItems": LIMITS.messages},
    "content": {"maxItems": MAX_CONTENT_PARTS},
    "output": {"maxItems": MAX_CONTENT_PARTS},
    "input": {"maxItems": LIMITS.inputs},
    "inputs": {"maxItems": LIMITS.inputs},
    "prompt": {"maxItems": LIMITS.prompts},
    "tools": {"maxItems": LIMITS.tools},
    "tool_calls": {"maxItems": LIMITS.tool_calls},
    "choice": {"maxItems": LIMITS.choices},
    "guided_choice": {"maxItems": LIMITS.choices},
}
OBJECTS: Mapping[str, Bounds] = {
    name: {"maxProperties": MAX_SCHEMA_KEYS} for name in ("parameters", "schema", "value", "json", "guided_json")
}
BY_TYPE: Mapping[str, tuple[Mapping[str, Bounds], Bounds]] = {
    "integer": (NUMBERS, {}),
    "string": ({}, {"maxLength": LIMITS.prompt_chars}),
    "array": (ARRAYS, {}),
    "object": (OBJECTS, {}),
}
TOKEN_IDS = {"maxItems": LIMITS.prompt_chars}
BOUNDING = {
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("maxLength", "pattern", "maxItems", "maxProperties"),
}


def add_bounds(model: Node) -> None:
    """Add the known bounds of its properties to the JSON Schema of a body."""
    if "properties" in model:
        model["properties"] = copy.deepcopy(model["properties"])  # fields of one type share parts
        for name, node in model["properties"].items():
            _add_by_name(name, node)


def _add_by_name(name: str, node: Node) -> None:
    for kind in ("anyOf", "oneOf", "allOf"):
        for branch in node.get(kind, ()):
            _add_by_name(name, branch)
    if "enum" in node or "const" in node:
        return
    if isinstance(node.get("items"), dict):
        _add_by_name(f"{name}[]", node["items"])
    if isinstance(node.get("additionalProperties"), dict):
        _add_by_name(f"{name}.*", node["additionalProperties"])
    for inner, property_ in node.get("properties", {}).items():
        _add_by_name(inner, property_)
    by_name, default = BY_TYPE.get(node.get("type", ""), ({}, {}))
    is_token_ids = node.get("type") == "array" and node.get("items", {}).get("type") == "integer"
    if not BOUNDING & node.keys():
        node.update(TOKEN_IDS if is_token_ids else by_name.get(name, default))
