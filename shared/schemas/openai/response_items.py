"""Items of OpenAI's responses, as they are stored and returned.

The id of every item derives from its response's job, so that an `item_reference` leads to the response. Output
items have theirs from the start; input items get theirs when a stored response is read.

Reference: OpenAI API, "Create a model response", `input` and `output`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from shared.protocol import Message, ToolCall
from shared.schemas.openai.logprobs import TokenLogprob
from shared.schemas.openai.response_tools import CUSTOM_INPUT

Role = Literal["system", "developer", "user", "assistant"]
Status = Literal["in_progress", "completed", "incomplete"]


class InputText(msgspec.Struct, tag="input_text", tag_field="type"):
    text: str


class OutputText(msgspec.Struct, tag="output_text", tag_field="type"):
    text: str
    annotations: list[None] = []
    logprobs: list[TokenLogprob] = []


class MessageItem(msgspec.Struct, tag="message", tag_field="type", kw_only=True):
    """One turn: output_text from the assistant, input_text from others."""

    id: str
    status: Status = "completed"
    role: Role
    content: list[InputText | OutputText]

    def to_message(self) -> Message:
        text = "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class SummaryText(msgspec.Struct, tag="summary_text", tag_field="type"):
    text: str


class ReasoningText(msgspec.Struct, tag="reasoning_text", tag_field="type"):
    text: str


class ReasoningItem(msgspec.Struct, tag="reasoning", tag_field="type", kw_only=True):
    """Reasoning before an answer."""

    id: str
    status: Status = "completed"
    summary: list[SummaryText] = []
    content: list[ReasoningText]

    @property
    def text(self) -> str:
        """The reasoning, or its summary where the client has nothing else."""
        return "".join(part.text for part in self.content or self.summary)


class FunctionCallItem(msgspec.Struct, tag="function_call", tag_field="type", kw_only=True):
    """A call that the model made; `arguments` is JSON text."""

    id: str
    status: Status = "completed"
    call_id: str
    name: str
    arguments: str

    def to_message(self) -> Message:
        return Message("assistant", "", tool_calls=(ToolCall(self.call_id, self.name, self.arguments),))


class CallOutputItem(msgspec.Struct, tag_field="type", kw_only=True):
    """Result of a call of a tool, of whichever kind."""

    id: str
    status: Status = "completed"
    call_id: str
    output: str

    def to_message(self) -> Message:
        return Message("tool", self.output, tool_call_id=self.call_id)


class FunctionOutputItem(CallOutputItem, tag="function_call_output", kw_only=True):
    """Result of a call of a function."""


class CustomCallItem(msgspec.Struct, tag="custom_tool_call", tag_field="type", kw_only=True):
    """A call of a custom tool that the model made."""

    id: str
    status: Status = "completed"
    call_id: str
    name: str
    input: str

    def to_message(self) -> Message:
        arguments = json.dumps({CUSTOM_INPUT: self.input}, ensure_ascii=False)
        return Message("assistant", "", tool_calls=(ToolCall(self.call_id, self.name, arguments),))


class CustomOutputItem(CallOutputItem, tag="custom_tool_call_output", kw_only=True):
    """Result of a call of a custom tool."""


OutputItem = ReasoningItem | MessageItem | FunctionCallItem | CustomCallItem
Item = OutputItem | FunctionOutputItem | CustomOutputItem
PREFIXES: dict[type[Item], str] = {  # of the ids
    ReasoningItem: "rs",
    MessageItem: "msg",
    FunctionCallItem: "fc",
    CustomCallItem: "ctc",
    FunctionOutputItem: "fco",
    CustomOutputItem: "cto",
}
_ITEM_ID = re.compile(rf"(?:{'|'.join(PREFIXES.values())})_([0-9a-f]{{32}})(?:_i?\d+)?")


def job_name_of(item_id: str) -> str | None:
    """Return the name, without prefix, of the job whose response has an item; None for an id of another form."""
    found = _ITEM_ID.fullmatch(item_id)
    return found and found[1]


def with_ids(items: Sequence[Item], job_name: str) -> list[Item]:
    """Return a response's input items, with an id for each that came with it; earlier ones have theirs."""
    return [
        item if item.id else msgspec.structs.replace(item, id=f"{PREFIXES[type(item)]}_{job_name}_i{number}")
        for number, item in enumerate(items)
    ]


def to_messages(items: Iterable[Item]) -> list[Message]:
    """Return the items as a chat. Calls join the assistant's turn before them, reasoning the one after it."""
    messages: list[Message] = []
    reasoning = ""
    for item in items:
        if isinstance(item, ReasoningItem):
            reasoning += item.text
            continue
        message = item.to_message()
        if message.tool_calls and messages and messages[-1].role == "assistant":
            before = messages.pop()
            message = msgspec.structs.replace(before, tool_calls=before.tool_calls + message.tool_calls)
        if reasoning and message.role == "assistant":
            message = msgspec.structs.replace(message, reasoning=message.reasoning + reasoning)
        reasoning = ""
        messages.append(message)
    return messages


def conversation_items(output: Iterable[OutputItem]) -> list[Item]:
    """Return an answer's items for later responses: without log-probabilities and incomplete calls."""
    items: list[Item] = []
    for item in output:
        if isinstance(item, MessageItem):
            items.append(msgspec.structs.replace(item, content=[type(part)(part.text) for part in item.content]))
        elif item.status == "completed":
            items.append(item)
    return items
