"""What the JSON Schemas of bodies tell of bounds, by a field's name. pydantic checks them, or
shared.validation.request_limits does.

Where a bound is a setting's, the largest that it can be is told.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field

from shared.validation.request_limits import MAX_SEED, MIN_REPETITION_PENALTY, Limits

LIMITS = Limits()
MOST_N = 128  # of the setting max_n
MOST_PARTS = 1024  # of one content
SCHEMA_KEYS = 10_000  # more do not fit the characters that a schema may have

Element = TypeVar("Element")
# Its first wrong element is told alone: a body of millions of them would take seconds to find and tell all.
Items = Annotated[list[Element], Field(fail_fast=True)]
Short = Annotated[str, Field(max_length=512)]  # an id or a name of the client's, told again or unused

Node = dict[str, Any]
Bounds = Mapping[str, float]


def _between(low: float, high: float) -> Bounds:
    return {"minimum": low, "maximum": high}


def _chars(most: int) -> Bounds:
    return {"maxLength": most}


def _items(most: int) -> Bounds:
    return {"maxItems": most}


NUMBERS: Mapping[str, Bounds] = {
    "temperature": _between(0, 2),
    "top_p": {"exclusiveMinimum": 0, "maximum": 1},
    "min_p": _between(0, 1),
    "top_k": _between(0, 1_000_000),
    "presence_penalty": _between(-2, 2),
    "frequency_penalty": _between(-2, 2),
    "repetition_penalty": _between(MIN_REPETITION_PENALTY, 2),
    "seed": _between(0, MAX_SEED),
    "n": _between(1, MOST_N),
    "best_of": _between(1, MOST_N),
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens"), _between(1, LIMITS.max_tokens)),
    **dict.fromkeys(("logprobs", "top_logprobs"), _between(0, 20)),
    "dimensions": _between(1, 2**20),
    "logit_bias.*": _between(-100, 100),
    "prompt[]": _between(0, 2**31 - 1),
}
STRINGS: Mapping[str, Bounds] = {
    "model": _chars(128),
    "user": _chars(LIMITS.user_chars),
    "stop": _chars(LIMITS.stop_chars),
    "stop[]": _chars(LIMITS.stop_chars),
    **dict.fromkeys(("regex", "grammar", "json", "choice[]"), _chars(LIMITS.grammar_chars)),
    "completion_window": _chars(6),
}
ARRAYS: Mapping[str, Bounds] = {
    "messages": _items(LIMITS.messages),
    "content": _items(MOST_PARTS),
    "output": _items(MOST_PARTS),
    "input": _items(LIMITS.inputs),
    "prompt": _items(LIMITS.prompts),
    "stop": _items(LIMITS.stop_strings),
    "tools": _items(LIMITS.tools),
    "tool_calls": _items(LIMITS.tool_calls),
    "choice": _items(LIMITS.choices),
}
OBJECTS: Mapping[str, Bounds] = {
    "logit_bias": {"maxProperties": LIMITS.logit_biases},
    **{name: {"maxProperties": SCHEMA_KEYS} for name in ("parameters", "schema", "json")},
}
BY_TYPE: Mapping[str, tuple[Mapping[str, Bounds], Bounds]] = {
    "number": (NUMBERS, {}),
    "integer": (NUMBERS, {}),
    "string": (STRINGS, _chars(LIMITS.prompt_chars)),
    "array": (ARRAYS, {}),
    "object": (OBJECTS, {}),
}
TOKENS = _items(LIMITS.prompt_chars)  # of a list of ids
BOUNDING = {
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("maxLength", "pattern", "maxItems", "maxProperties"),
}


def tell_bounds(model: Node) -> None:
    """Add what is known of its properties' bounds to the JSON Schema of a body."""
    if "properties" in model:
        model["properties"] = copy.deepcopy(model["properties"])  # fields of one type share parts
        for name, node in model["properties"].items():
            _tell(name, node)


def _tell(name: str, node: Node) -> None:
    for kind in ("anyOf", "oneOf", "allOf"):
        for each in node.get(kind, ()):
            _tell(name, each)
    if "enum" in node or "const" in node:
        return
    if isinstance(node.get("items"), dict):
        _tell(f"{name}[]", node["items"])
    if isinstance(node.get("additionalProperties"), dict):
        _tell(f"{name}.*", node["additionalProperties"])
    for inner, each in node.get("properties", {}).items():
        _tell(inner, each)
    named, usual = BY_TYPE.get(node.get("type", ""), ({}, {}))
    ids = node.get("type") == "array" and node.get("items", {}).get("type") == "integer"
    if not BOUNDING & node.keys():
        node.update(TOKENS if ids else named.get(name, usual))
