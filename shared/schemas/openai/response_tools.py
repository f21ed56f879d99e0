"""Tools and formats of OpenAI's responses: flat, where those of chats are nested.

A custom tool takes free text. The model is offered it as a function with one string, `input`, which every template
and every notation of calls can express; `producer_api.answers.custom_input` turns the arguments back into the text.
Hosted tools run on OpenAI's servers: they are ignored, unless tool_choice demands one.

Reference: OpenAI API, "Create a model response", `tools`, `tool_choice` and `text`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from shared.errors import InvalidRequest
from shared.protocol import Function, Structured, Tools
from shared.schemas.base import Body, IgnoredObject
from shared.schemas.openapi_bounds import LIMITS, Items
from shared.schemas.structured import ObjectFormat, SchemaFormat, TextFormat
from shared.schemas.tools import FunctionDefinition, FunctionName, Word, tools_of

PARAM = "text.format"  # the field that errors name
_OFFERED = re.compile(r"tools\[(\d+)\](?:\.function)?(.*)")
CUSTOM_INPUT = "input"  # the parameter of the function that stands for a custom tool


class OfFunction(Body):
    type: Literal["function"]


class FunctionTool(FunctionDefinition, OfFunction):
    """A function of the client."""


class NamedFunction(FunctionName, OfFunction):
    """The function to call."""


class TextInput(Body):
    """Free text."""

    type: Literal["text"]


class GrammarInput(Body):
    """Text that matches a regular expression."""

    type: Literal["grammar"]
    syntax: Literal["regex"] = Field(description="regex; lark is not supported")
    definition: str


class CustomTool(FunctionName):
    """A tool of the client that takes free text."""

    type: Literal["custom"]
    description: str | None = Field(None, description="purpose of the tool, for the model")
    format: Annotated[TextInput | GrammarInput, Field(discriminator="type")] | None = Field(
        None, description="the text that it takes; default: any"
    )

    def to_function(self) -> Function:
        """Return the function that stands for the tool. A pattern is enforced, or the tool is refused."""
        text: dict[str, Any] = {"type": "string"}
        if isinstance(self.format, GrammarInput):
            text["pattern"] = f"^(?:{self.format.definition})$"
        schema = {"type": "object", "properties": {CUSTOM_INPUT: text}, "required": [CUSTOM_INPUT]}
        parameters = json.dumps({**schema, "additionalProperties": False})
        return Function(self.name, self.description or "", parameters, strict="pattern" in text)


class HostedTool(IgnoredObject):
    """A tool of OpenAI's servers, such as web_search or mcp: this server has none."""

    type: str


class NamedCustom(FunctionName):
    """The custom tool to call."""

    type: Literal["custom"]


class AllowedTool(Body):
    """One of the tools, by its type and name."""

    type: str
    name: str | None = None


class AllowedTools(Body):
    """The tools that may be called, of those offered. The model is shown all of them."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Items[AllowedTool] = Field(max_length=LIMITS.tools)


def _kind_of_tool(tool: Any) -> str:
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    return kind if kind in ("function", "custom") else "hosted"


def _kind_of_choice(choice: Any) -> str:
    if choice is None or isinstance(choice, str):
        return "word"
    kind = choice.get("type", "function") if isinstance(choice, dict) else getattr(choice, "type", None)
    return kind if kind in ("function", "custom", "allowed_tools") else "hosted"


def _implied_type(choice: Any) -> Any:
    """Return a choice that names a function without saying so with its type."""
    return {"type": "function", **choice} if isinstance(choice, dict) else choice


def _refuse_hosted(choice: Any) -> Any:
    raise PydanticCustomError("tool_choice", "must not demand a hosted tool: this server has none")


Tool = Annotated[
    Annotated[FunctionTool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[HostedTool, Tag("hosted")],
    Discriminator(_kind_of_tool),
]
ToolChoice = Annotated[
    Annotated[Word | None, Tag("word")]
    | Annotated[NamedFunction, BeforeValidator(_implied_type), Tag("function")]
    | Annotated[NamedCustom, Tag("custom")]
    | Annotated[AllowedTools, Tag("allowed_tools")]
    | Annotated[HostedTool, BeforeValidator(_refuse_hosted), Tag("hosted")],
    Discriminator(_kind_of_choice),
]


class FlatSchema(SchemaFormat):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema", description="the JSON schema of the answer")


class TextOptions(Body):
    format: Annotated[TextFormat | ObjectFormat | FlatSchema, Field(discriminator="type")] | None = None
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description="returned, otherwise unused")

    def to_structured(self) -> Structured | None:
        form = self.format
        if isinstance(form, ObjectFormat):
            return Structured(json_object=True, param=PARAM)
        if isinstance(form, FlatSchema):
            return Structured(json_schema=json.dumps(form.schema_), strict=bool(form.strict), param=PARAM)
        return None


class ToolFields(Body):
    """Fields that offer tools to the model and constrain its answer."""

    tools: Items[Tool] | None = Field(
        None, max_length=LIMITS.tools, description="your functions and custom tools; hosted ones are ignored"
    )
    tool_choice: ToolChoice = Field(
        None, description="none, auto, required, the tool to call, or those allowed; default with tools: auto"
    )
    parallel_tool_calls: bool | None = Field(None, description="allow several calls; default true")
    text: TextOptions | None = Field(None, description="text, a JSON object, or JSON that matches a schema")

    def to_tools(self) -> Tools | None:
        """Return the tools that may be called. Raise InvalidRequest for a tool_choice without tools."""
        offered, choice = self._own_tools, self.tool_choice
        allowed: Sequence[str] = ()
        if isinstance(choice, AllowedTools):
            allowed, choice = self._allowed(choice), choice.mode
            offered = offered if allowed else ()
        assert not isinstance(choice, HostedTool), "its validator refuses it"
        return tools_of(offered, choice, parallel=self.parallel_tool_calls is not False, allowed=allowed)

    @property
    def _own_tools(self) -> Sequence[FunctionTool | CustomTool]:
        return [tool for tool in self.tools or () if not isinstance(tool, HostedTool)]

    def naming_tools(self, error: InvalidRequest) -> InvalidRequest:
        """Return an error about the tools offered to the model, by their number, with the field of this body."""
        found = _OFFERED.match(error.param or "")
        if found is None:
            return error
        number, rest = int(found[1]), found[2]
        tools = self.tools or ()
        place = [i for i, tool in enumerate(tools) if not isinstance(tool, HostedTool)][number]
        if isinstance(tools[place], CustomTool) and rest == ".parameters":
            rest = ".format"
        return type(error)(error.message, param=f"tools[{place}]{rest}")

    def _allowed(self, choice: AllowedTools) -> Sequence[str]:
        """Return the names of the tools that a choice allows. Raise InvalidRequest if it allows others."""
        names = {tool.name for tool in self._own_tools}
        for i, tool in enumerate(choice.tools):
            if tool.type in ("function", "custom") and tool.name not in names:
                raise InvalidRequest("must name one of tools", param=f"tool_choice.tools[{i}].name")
        return [tool.name for tool in choice.tools if tool.name in names]

    def returned_tools(self) -> list[FunctionTold | CustomTold]:
        """Return the tools that the model is offered."""
        return [
            CustomTold(tool.name, tool.description, _format_told(tool.format))
            if isinstance(tool, CustomTool)
            else FunctionTold(tool.name, tool.description, tool.parameters, bool(tool.strict))
            for tool in self._own_tools
        ]

    def returned_choice(self) -> Word | NamedTold | NamedCustomTold | AllowedTold:
        match self.tool_choice:
            case NamedFunction(name=name):
                return NamedTold(name)
            case NamedCustom(name=name):
                return NamedCustomTold(name)
            case AllowedTools(mode=mode, tools=tools):
                return AllowedTold(mode, [tool.model_dump(exclude_none=True) for tool in tools])
            case "none" | "required" as word:
                return word
            case _:
                return "auto"

    def returned_format(self) -> FormatTold:
        form = self.text.format if self.text else None
        if isinstance(form, FlatSchema):
            return JsonSchema(form.name, form.schema_, form.description, bool(form.strict))
        return JsonObject() if isinstance(form, ObjectFormat) else PlainText()


# the same in a response object


class FunctionTold(msgspec.Struct, tag="function", tag_field="type"):
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool


class AnyText(msgspec.Struct, tag="text", tag_field="type"): ...


class Grammar(msgspec.Struct, tag="grammar", tag_field="type"):
    syntax: str
    definition: str


def _format_told(given: TextInput | GrammarInput | None) -> AnyText | Grammar:
    return Grammar(given.syntax, given.definition) if isinstance(given, GrammarInput) else AnyText()


class CustomTold(msgspec.Struct, tag="custom", tag_field="type"):
    name: str
    description: str | None
    format: AnyText | Grammar


class NamedTold(msgspec.Struct, tag="function", tag_field="type"):
    name: str


class NamedCustomTold(msgspec.Struct, tag="custom", tag_field="type"):
    name: str


class AllowedTold(msgspec.Struct, tag="allowed_tools", tag_field="type"):
    mode: Word
    tools: list[dict[str, Any]]


class PlainText(msgspec.Struct, tag="text", tag_field="type"): ...


class JsonObject(msgspec.Struct, tag="json_object", tag_field="type"): ...


class JsonSchema(msgspec.Struct, tag="json_schema", tag_field="type"):
    name: str
    schema: dict[str, Any]
    description: str | None
    strict: bool


FormatTold = PlainText | JsonObject | JsonSchema
