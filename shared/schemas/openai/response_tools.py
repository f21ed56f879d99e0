"""What an answer may call and must look like, as OpenAI's responses say it: flat, where a chat nests it.

Reference: OpenAI API, "Create a model response", its `tools`, `tool_choice` and `text`.
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

PARAM = "text.format"  # which errors name


class OfFunction(Body):
    type: Literal["function"]


class FunctionTool(FunctionDefinition, OfFunction):
    """A function of the client's own."""


class NamedFunction(FunctionName, OfFunction):
    """The one to call."""


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
        asked = self.format
        if isinstance(asked, ObjectFormat):
            return Structured(json_object=True, param=PARAM)
        if isinstance(asked, FlatSchema):
            return Structured(json_schema=json.dumps(asked.schema_), strict=bool(asked.strict), param=PARAM)
        return None


class ToolFields(Body):
    """The fields of a response that say what its answer may call, and must look like."""

    tools: Items[FunctionTool] | None = Field(None, description="functions of yours; there are no hosted tools")
    tool_choice: ToolChoice = Field(
        None, description="whether it may, must, or which it must call; default with tools: auto"
    )
    parallel_tool_calls: bool | None = Field(None, description="whether it may make several calls; default true")
    text: TextOptions | None = Field(None, description="text, a JSON object, or JSON by a schema")

    def to_tools(self) -> Tools | None:
        """Raises InvalidRequest for a choice where there is nothing to choose from."""
        return tools_of(self.tools or (), self.tool_choice, parallel=self.parallel_tool_calls is not False)

    def told_tools(self) -> list[FunctionTold]:
        return [
            FunctionTold(tool.name, tool.description, tool.parameters, bool(tool.strict))
            for tool in self.tools or ()
        ]

    def told_choice(self) -> Word | NamedTold:
        choice = self.tool_choice
        return NamedTold(choice.name) if isinstance(choice, NamedFunction) else choice or "auto"

    def told_format(self) -> FormatTold:
        asked = self.text.format if self.text else None
        if isinstance(asked, FlatSchema):
            return JsonSchema(asked.name, asked.schema_, asked.description, bool(asked.strict))
        return JsonObject() if isinstance(asked, ObjectFormat) else PlainText()


# how a response tells them again


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
