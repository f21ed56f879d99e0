"""A chat's turns as its model's template takes them, with what the model may call and has called.

Where the template knows nothing of tools, they are told in a system message, and calls and results in the turns'
text, in the form of Hermes 2 Pro. It renders nothing itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from shared.protocol import Function, Message, ToolCall, Tools
from shared.validation.json_text import fault

INSTRUCTIONS = """# Tools

You may call functions to help with the user's request. Their signatures are within <tools></tools>:
<tools>
{functions}
</tools>

To call one, answer with a JSON object with its name and arguments within <tool_call></tool_call>:
<tool_call>
{{"name": <name>, "arguments": <arguments as a JSON object>}}
</tool_call>"""

Turn = dict[str, Any]


def native_turns(
    messages: Sequence[Message], tools: Tools | None, *, short_ids: bool
) -> tuple[list[Turn], list[Turn] | None]:
    """For a template that knows tools: turns, and functions, as transformers hands them to it."""
    named = _shortened if short_ids else str
    turns = []
    for message in messages:
        turn: Turn = {"role": message.role, "content": message.content}
        if message.tool_calls:
            turn["tool_calls"] = [_native_call(call, named(call.id)) for call in message.tool_calls]
        if message.tool_call_id is not None:
            turn["tool_call_id"] = named(message.tool_call_id)
        if message.name is not None:
            turn["name"] = message.name
        turns.append(turn)
    return turns, [_described(each) for each in tools.functions] if tools else None


def plain_turns(messages: Sequence[Message], tools: Tools | None) -> list[Turn]:
    """For a template that does not: all of it as text."""
    turns: list[Turn] = []
    if tools is not None:
        functions = "\n".join(json.dumps(_described(each), ensure_ascii=False) for each in tools.functions)
        section = INSTRUCTIONS.format(functions=functions)
        if messages and messages[0].role == "system":
            section, messages = f"{messages[0].content}\n\n{section}", messages[1:]
        turns.append({"role": "system", "content": section})
    for message in messages:
        if message.role == "tool":
            turns.append({"role": "user", "content": f"<tool_response>\n{message.content}\n</tool_response>"})
        else:
            said = [message.content] if message.content else []
            text = "\n".join([*said, *(_plain_call(call) for call in message.tool_calls)])
            turns.append({"role": message.role, "content": text})
    return turns


def _described(function: Function) -> Turn:
    parameters = json.loads(function.parameters) if function.parameters else {"type": "object", "properties": {}}
    told = {"name": function.name, "description": function.description, "parameters": parameters}
    return {"type": "function", "function": told}


def _arguments(call: ToolCall) -> Any:
    """As an object; as they are where an answer was cut off in them, or where the object would break a template."""
    if fault(call.arguments) is not None:
        return call.arguments
    try:
        return json.loads(call.arguments)
    except ValueError:
        return call.arguments


def _shortened(call_id: str) -> str:
    """9 letters and digits, the same for the same id."""
    return hashlib.blake2b(call_id.encode(), digest_size=8).hexdigest()[:9]


def _native_call(call: ToolCall, call_id: str) -> Turn:
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": _arguments(call)}}


def _plain_call(call: ToolCall) -> str:
    told = json.dumps({"name": call.name, "arguments": _arguments(call)}, ensure_ascii=False)
    return f"<tool_call>\n{told}\n</tool_call>"
