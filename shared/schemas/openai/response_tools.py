"""Tools and formats of OpenAI's responses: flat, where those of chats are nested.

Reference: OpenAI API, "Create a model response", `tools`, `tool_choice` and `text`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Discriminator, Field, Tag

from shared.protocol import Structured, Tools
from shared.schemas.base import Body
from shared.schemas.openapi_bounds import Items
from shared.schemas.structured import ObjectFormat, SchemaFormat, TextFormat
from shared.schemas.tools import FunctionDefinition, FunctionName, Word, tools_of

PARAM = "text.format"  # the field that errors name


class OfFunction(Body):
    type: Literal["function"]


class FunctionTool(FunctionDefinition, OfFunction):
    """A function of the client."""


class NamedFunction(FunctionName, OfFunction):
    """The function to call."""


def _kind(choice: Any) -> str:
    return "word" if choice is None or isinstance(choice, str) else "function"


ToolChoice = Annotated[
    Annotated[Word | None, Tag("word")] | Annotated[NamedFunction, Tag("function")],
    Discriminator(_kind),
]


class FlatSchema(SchemaFormat):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema", description="the JSON schema of the answer")


class TextOptions(Body):
    format: Annotated[TextFormat | ObjectFormat | FlatSchema, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None

    def to_structured(self) -> Structured | None:
        form = self.format
        if isinstance(form, ObjectFormat):
            return Structured(json_object=True, param=PARAM)
        if isinstance(form, FlatSchema):
            return Structured(json_schema=json.dumps(form.schema_), strict=bool(form.strict), param=PARAM)
        return None


class ToolFields(Body):
    """Fields that offer tools to the model and constrain its answer."""

    tools: Items[FunctionTool] | None = Field(None, description="your functions; hosted tools are not supported")
    tool_choice: ToolChoice = Field(
        None, description="none, auto, required, or the function to call; default with tools: auto"
    )
    parallel_tool_calls: bool | None = Field(None, description="allow several calls; default true")
    text: TextOptions | None = Field(None, description="text, a JSON object, or JSON that matches a schema")

    def to_tools(self) -> Tools | None:
        """Return the tools. Raise InvalidRequest for a tool_choice without tools."""
        return tools_of(self.tools or (), self.tool_choice, parallel=self.parallel_tool_calls is not False)

    def returned_tools(self) -> list[FunctionTold]:
        return [
            FunctionTold(tool.name, tool.description, tool.parameters, bool(tool.strict))
            for tool in self.tools or ()
        ]

    def returned_choice(self) -> Word | NamedTold:
        choice = self.tool_choice
        return NamedTold(choice.name) if isinstance(choice, NamedFunction) else choice or "auto"

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


class NamedTold(msgspec.Struct, tag="function", tag_field="type"):
    name: str


class PlainText(msgspec.Struct, tag="text", tag_field="type"): ...


class JsonObject(msgspec.Struct, tag="json_object", tag_field="type"): ...


class JsonSchema(msgspec.Struct, tag="json_schema", tag_field="type"):
    name: str
    schema: dict[str, Any]
    description: str | None
    strict: bool


FormatTold = PlainText | JsonObject | JsonSchema
