"""Items of OpenAI's responses, as a body has them.

Items that are not text, and items of hosted tools, are refused by name.

Reference: OpenAI API, "Create a model response", `input`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from shared.schemas.base import Body
from shared.schemas.openai.response_items import (
    CustomCallItem,
    CustomOutputItem,
    FunctionCallItem,
    FunctionOutputItem,
    InputText,
    Item,
    MessageItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Role,
    Status,
    SummaryText,
)
from shared.schemas.openapi_bounds import LIMITS, MAX_CONTENT_PARTS, Items, Short
from shared.schemas.tools import Arguments
from shared.validation.sampling_parameters import MAX_ANSWER_TOKENS


class InputPart(Body):
    """A part of a turn. A part of an answer that is sent back has `annotations` and `logprobs`."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=MAX_CONTENT_PARTS)] | None = Field(
        None, description="accepted, without effect"
    )
    logprobs: list[Any] | None = Field(None, max_length=MAX_ANSWER_TOKENS, description="accepted, without effect")


def _to_parts(content: Any) -> Any:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


def _to_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class RefusalPart(Body):
    """A refusal in an earlier answer: the turn's text."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


_Part = Annotated[InputPart | RefusalPart, Field(discriminator="type")]
_Parts = Annotated[Items[_Part], Field(max_length=MAX_CONTENT_PARTS)]
Parts = Annotated[_Parts, BeforeValidator(_to_parts, json_schema_input_type=str | _Parts)]


class _InputItem(Body):
    """Fields of an answer's item that are accepted when it is sent back."""

    id: Short | None = Field(None, description="accepted, without effect")
    status: Status | None = Field(None, description="accepted, without effect")


class InputMessage(_InputItem):
    """One turn."""

    type: Literal["message"] = "message"
    role: Role
    content: Parts
    phase: Short | None = Field(None, description="accepted, without effect")

    def to_item(self) -> Item:
        text = OutputText if self.role == "assistant" else InputText
        return MessageItem(id="", role=self.role, content=[text(part.text) for part in self.content])


CallId = Annotated[str, Field(max_length=128)]


class InputCall(_InputItem):
    """A call from an earlier answer."""

    type: Literal["function_call"]
    call_id: CallId
    name: Short
    arguments: Arguments

    def to_item(self) -> Item:
        return FunctionCallItem(id="", call_id=self.call_id, name=self.name, arguments=self.arguments)


class InputOutput(_InputItem):
    """Result of a call."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Parts
    name: Short | None = Field(None, description="accepted, without effect")

    def to_item(self) -> Item:
        output = "".join(part.text for part in self.output)
        return FunctionOutputItem(id="", call_id=self.call_id, output=output)


class InputCustomCall(_InputItem):
    """A call of a custom tool from an earlier answer."""

    type: Literal["custom_tool_call"]
    call_id: CallId
    name: Short
    input: str

    def to_item(self) -> Item:
        return CustomCallItem(id="", call_id=self.call_id, name=self.name, input=self.input)


class InputCustomOutput(_InputItem):
    """Result of a call of a custom tool."""

    type: Literal["custom_tool_call_output"]
    call_id: CallId
    output: Parts
    name: Short | None = Field(None, description="accepted, without effect")

    def to_item(self) -> Item:
        return CustomOutputItem(id="", call_id=self.call_id, output="".join(part.text for part in self.output))


class ReasoningPart(Body):
    """A piece of reasoning or of its summary."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


ReasoningParts = Annotated[Items[ReasoningPart], Field(max_length=MAX_CONTENT_PARTS)]


class InputReasoning(_InputItem):
    """Reasoning from an earlier answer, for chat templates that use it."""

    type: Literal["reasoning"]
    summary: ReasoningParts = Field(default_factory=list)
    content: ReasoningParts | None = None
    encrypted_content: str | None = Field(None, description="accepted, without effect")

    def to_item(self) -> Item:
        return ReasoningItem(
            id="",
            summary=[SummaryText(part.text) for part in self.summary],
            content=[ReasoningText(part.text) for part in self.content or ()],
        )


class ItemReference(Body):
    """An item of one of your stored responses, by its id."""

    type: Literal["item_reference"]
    id: Short


def _kind(item: Any) -> str:
    """Return the type of an item, which may be parsed already; the default is message."""
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    if kind is None and isinstance(item, dict) and item.keys() == {"id"}:
        return "item_reference"
    return str(kind or "message")


def _with_type(reference: Any) -> Any:
    return {"type": "item_reference", **reference} if isinstance(reference, dict) else reference


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputOutput, Tag("function_call_output")]
    | Annotated[InputCustomCall, Tag("custom_tool_call")]
    | Annotated[InputCustomOutput, Tag("custom_tool_call_output")]
    | Annotated[InputReasoning, Tag("reasoning")]
    | Annotated[ItemReference, BeforeValidator(_with_type), Tag("item_reference")],
    Discriminator(_kind),
]
_Input = Annotated[Items[InputItem], Field(min_length=1, max_length=LIMITS.messages)]
Input = Annotated[_Input, BeforeValidator(_to_items, json_schema_input_type=str | _Input)]
