"""Turns of a chat in the form that a chat template takes, including tools, tool calls and their results.

If the template does not support tools, a system message describes them, and calls and results are written as text
in the format of Hermes 2 Pro. Roles and this markup may become control tokens, as the template's own text may.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from shared.protocol import Function, Message, ToolCall, Tools
from shared.validation.json_text import fault
from workers.engine.text.traced_text import trusted

INSTRUCTIONS_START = trusted("""# Tools

You may call functions to help with the user's request. Their signatures are within <tools></tools>:
<tools>
""")
INSTRUCTIONS_END = trusted("""
</tools>

To call one, answer with a JSON object with its name and arguments within <tool_call></tool_call>:
<tool_call>
{"name": <name>, "arguments": <arguments as a JSON object>}
</tool_call>""")
RESULT_START, RESULT_END = trusted("<tool_response>\n"), trusted("\n</tool_response>")
CALL_START, CALL_END = trusted("<tool_call>\n"), trusted("\n</tool_call>")
PLAIN_MARKUP = (INSTRUCTIONS_START, INSTRUCTIONS_END, RESULT_START, RESULT_END, CALL_START, CALL_END)
NEWLINE, EMPTY_LINE = trusted("\n"), trusted("\n\n")

Turn = dict[str, Any]


def native_turns(
    messages: Sequence[Message], tools: Tools | None, *, short_ids: bool
) -> tuple[list[Turn], list[Turn] | None]:
    """Return turns and functions for a template that supports tools, as transformers passes them."""
    call_id = _short_id if short_ids else str
    turns = []
    for message in messages:
        turn: Turn = {"role": trusted(message.role), "content": message.content, **_reasoning(message)}
        if message.tool_calls:
            turn["tool_calls"] = [_native_call(call, call_id(call.id)) for call in message.tool_calls]
        if message.tool_call_id is not None:
            turn["tool_call_id"] = call_id(message.tool_call_id)
        if message.name is not None:
            turn["name"] = message.name
        turns.append(turn)
    return turns, [_function_json(each) for each in tools.functions] if tools else None


def plain_turns(messages: Sequence[Message], tools: Tools | None) -> list[Turn]:
    """Return turns for a template that does not support tools: everything as text."""
    turns: list[Turn] = []
    if tools is not None:
        functions = "\n".join(json.dumps(_function_json(each), ensure_ascii=False) for each in tools.functions)
        section = INSTRUCTIONS_START + functions + INSTRUCTIONS_END
        if messages and messages[0].role == "system":
            section, messages = messages[0].content + EMPTY_LINE + section, messages[1:]
        turns.append({"role": trusted("system"), "content": section})
    for message in messages:
        if message.role == "tool":
            turns.append({"role": trusted("user"), "content": RESULT_START + message.content + RESULT_END})
        else:
            content = [message.content] if message.content else []
            text = NEWLINE.join([*content, *(_plain_call(call) for call in message.tool_calls)])
            turns.append({"role": trusted(message.role), "content": text, **_reasoning(message)})
    return turns


def _reasoning(message: Message) -> Turn:
    """Return the reasoning before an answer under each name that chat templates have for it."""
    names = ("reasoning_content", "reasoning", "thinking")
    return dict.fromkeys(names, message.reasoning) if message.reasoning else {}


def _function_json(function: Function) -> Turn:
    parameters = json.loads(function.parameters) if function.parameters else {"type": "object", "properties": {}}
    described = {"name": function.name, "description": function.description, "parameters": parameters}
    return {"type": "function", "function": described}


def _parsed_arguments(call: ToolCall) -> Any:
    """Return a call's arguments as an object; as text if they are cut off or the object would break a template."""
    if fault(call.arguments) is not None:
        return call.arguments
    try:
        return json.loads(call.arguments)
    except ValueError:
        return call.arguments


def _short_id(call_id: str) -> str:
    """Return 9 letters and digits that depend on the id alone."""
    return hashlib.blake2b(call_id.encode(), digest_size=8).hexdigest()[:9]


def _native_call(call: ToolCall, call_id: str) -> Turn:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": _parsed_arguments(call)},
    }


def _plain_call(call: ToolCall) -> str:
    described = json.dumps({"name": call.name, "arguments": _parsed_arguments(call)}, ensure_ascii=False)
    return CALL_START + described + CALL_END
