"""Structural tags of xgrammar that constrain tool calls to the model's format."""

from __future__ import annotations

import json
from typing import Any

from shared.protocol import Function, Tools
from workers.engine.grammar.schema_rewrite import rewrite_schema
from workers.engine.text.tool_format import ToolFormat

ANY_ARGUMENTS: dict[str, Any] = {"type": "object", "additionalProperties": True}


def calls_tag(form: ToolFormat, tools: Tools) -> dict[str, Any]:
    """Return the tag of an answer that consists of calls to these tools."""
    listed = {
        "type": "tags_with_separator",
        "tags": _call_tags(form, tools),
        "separator": form.separator,
        "at_least_one": True,
        "stop_after_first": _one_call_only(form, tools),
    }
    if not form.opening:
        return listed
    return {"type": "tag", "begin": form.opening, "content": listed, "end": form.closing}


def text_with_calls_tag(form: ToolFormat, tools: Tools) -> dict[str, Any]:
    """Return the tag of an answer that has text, calls to these tools, or both."""
    tags = [calls_tag(form, tools)] if form.opening else _call_tags(form, tools)
    once = _one_call_only(form, tools) or bool(form.opening)
    return {"type": "triggered_tags", "triggers": [form.trigger], "tags": tags, "stop_after_first": once}


def _one_call_only(form: ToolFormat, tools: Tools) -> bool:
    return form.single_call or tools.named is not None or not tools.parallel


def _call_tags(form: ToolFormat, tools: Tools) -> list[dict[str, Any]]:
    return [_call_tag(form, function) for function in tools.allowed]


def _call_tag(form: ToolFormat, function: Function) -> dict[str, Any]:
    schema = rewrite_schema(json.loads(function.parameters)) if function.parameters else ANY_ARGUMENTS
    if isinstance(schema, dict):
        schema.setdefault("type", "object")
    arguments = {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": 1}
    begin = form.before + function.name + form.middle
    return {"type": "tag", "begin": begin, "content": arguments, "end": form.after}
