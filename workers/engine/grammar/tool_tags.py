"""Structural tags of xgrammar that constrain tool calls to the model's format."""

from __future__ import annotations

import json
from typing import Any

from shared.protocol import Function, Tools
from workers.engine.grammar.schema_rewrite import rewrite_schema
from workers.engine.text.tool_format import ToolFormat

ANY_ARGUMENTS: dict[str, Any] = {"type": "object", "additionalProperties": True}


def calls_tag(tool_format: ToolFormat, tools: Tools) -> dict[str, Any]:
    """Return the tag of an answer that consists of calls to these tools."""
    calls = {
        "type": "tags_with_separator",
        "tags": _call_tags(tool_format, tools),
        "separator": tool_format.separator,
        "at_least_one": True,
        "stop_after_first": _one_call_only(tool_format, tools),
    }
    if not tool_format.opening:
        return calls
    return {"type": "tag", "begin": tool_format.opening, "content": calls, "end": tool_format.closing}


def text_with_calls_tag(tool_format: ToolFormat, tools: Tools) -> dict[str, Any]:
    """Return the tag of an answer that has text, calls to these tools, or both."""
    tags = [calls_tag(tool_format, tools)] if tool_format.opening else _call_tags(tool_format, tools)
    once = _one_call_only(tool_format, tools) or bool(tool_format.opening)
    return {"type": "triggered_tags", "triggers": [tool_format.trigger], "tags": tags, "stop_after_first": once}


def _one_call_only(tool_format: ToolFormat, tools: Tools) -> bool:
    return tool_format.single_call or tools.named is not None or not tools.parallel


def _call_tags(tool_format: ToolFormat, tools: Tools) -> list[dict[str, Any]]:
    return [_call_tag(tool_format, function) for function in tools.allowed]


def _call_tag(tool_format: ToolFormat, function: Function) -> dict[str, Any]:
    schema = rewrite_schema(json.loads(function.parameters)) if function.parameters else ANY_ARGUMENTS
    if isinstance(schema, dict):
        schema.setdefault("type", "object")
    arguments = {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": 1}
    begin = tool_format.before + function.name + tool_format.middle
    return {"type": "tag", "begin": begin, "content": arguments, "end": tool_format.after}
