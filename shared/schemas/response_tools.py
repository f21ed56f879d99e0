"""What an answer may call and must look like, as OpenAI's responses say it: flat, where a chat nests it.

Reference: OpenAI API, "Create a model response", its `tools`, `tool_choice` and `text`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Discriminator, Field, Tag

from shared.errors import InvalidRequest
from shared.protocol import Function, Structured, Tools
from shared.schemas.body import Body

HELD = "refuse what cannot be held in full; otherwise it is held as far as can be"
PARAM = "text.format"  # which errors name


class FunctionTool(Body):
    """A function of the client's own."""

    type: Literal["function"]
    name: str = Field(description="1 to 64 letters, digits, - and _")
    description: str | None = Field(None, description="tells the model what it is for")
    parameters: dict[str, Any] | None = Field(None, description="the JSON schema of its arguments")
    strict: bool | None = Field(None, description=HELD)

    def to_function(self) -> Function:
        parameters = "" if self.parameters is None else json.dumps(self.parameters)
        return Function(self.name, self.description or "", parameters, strict=bool(self.strict))


class NamedFunction(Body):
    type: Literal["function"]
    name: str


def _kind(choice: Any) -> str:
    return "word" if choice is None or isinstance(choice, str) else "function"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"] | None, Tag("word")] | Annotated[NamedFunction, Tag("function")],
    Discriminator(_kind),
]


class TextFormat(Body):
    type: Literal["text"]


class ObjectFormat(Body):
    type: Literal["json_object"]


class SchemaFormat(Body):
    type: Literal["json_schema"]
    name: str = Field(description="for the client's own use", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    schema_: dict[str, Any] = Field(alias="schema", description="the JSON schema of the answer")
    description: str | None = Field(None, description="for the client's own use")
    strict: bool | None = Field(None, description=HELD)


class TextOptions(Body):
    format: Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None

    def to_structured(self) -> Structured | None:
        asked = self.format
        if isinstance(asked, ObjectFormat):
            return Structured(json_object=True, param=PARAM)
        if isinstance(asked, SchemaFormat):
            return Structured(json_schema=json.dumps(asked.schema_), strict=bool(asked.strict), param=PARAM)
        return None


class ToolFields(Body):
    """The fields of a response that say what its answer may call, and must look like."""

    tools: list[FunctionTool] | None = Field(None, description="functions of yours; there are no hosted tools")
    tool_choice: ToolChoice = Field(
        None, description="whether it may, must, or which it must call; default with tools: auto"
    )
    parallel_tool_calls: bool | None = Field(None, description="whether it may make several calls; default true")
    text: TextOptions | None = Field(None, description="text, a JSON object, or JSON by a schema")

    def to_tools(self) -> Tools | None:
        """Raises InvalidRequest for a choice where there is nothing to choose from."""
        choice = self.tool_choice
        if not self.tools:
            if choice not in (None, "none", "auto"):
                raise InvalidRequest("tool_choice: only allowed with tools", param="tool_choice")
            return None
        if choice == "none":
            return None
        return Tools(
            tuple(tool.to_function() for tool in self.tools),
            required=choice == "required",
            named=choice.name if isinstance(choice, NamedFunction) else None,
            parallel=self.parallel_tool_calls is not False,
        )

    def told_tools(self) -> list[FunctionTold]:
        return [
            FunctionTold(tool.name, tool.description, tool.parameters, bool(tool.strict))
            for tool in self.tools or ()
        ]

    def told_choice(self) -> Literal["none", "auto", "required"] | NamedTold:
        choice = self.tool_choice
        return NamedTold(choice.name) if isinstance(choice, NamedFunction) else choice or "auto"

    def told_format(self) -> FormatTold:
        asked = self.text.format if self.text else None
        if isinstance(asked, SchemaFormat):
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
