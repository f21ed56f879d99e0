"""What an answer must look like, as OpenAI's `response_format` and vLLM's `structured_outputs` say it.

References: OpenAI API, "Structured model outputs"; vLLM, "Structured Outputs". What a schema may say is for
shared.validation.json_schema.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from shared.errors import InvalidRequest
from shared.protocol import Structured
from shared.schemas.base import Body
from shared.schemas.openapi_bounds import Items
from shared.schemas.parameter_fields import parameter_field


class SchemaFormat(Body):
    """A named JSON schema."""

    name: str = Field(description="for the client's own use", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = Field(None, description="for the client's own use")
    schema_: dict[str, Any] = Field({}, alias="schema", description="the JSON schema of the answer")
    strict: bool | None = Field(
        None,
        description="refuse a schema that cannot be held in full; otherwise it is held as far as can be",
    )


class TextFormat(Body):
    type: Literal["text"]


class ObjectFormat(Body):
    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: SchemaFormat


ResponseFormat = Annotated[TextFormat | ObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Body):
    """vLLM's form; one of these."""

    json_: dict[str, Any] | str | None = Field(
        None, alias="json", description="a JSON schema, as an object or as text; held in full, or refused"
    )
    json_object: bool | None = Field(None, description="any JSON object")
    regex: str | None = Field(None, description="a regular expression for the whole answer")
    choice: Items[str] | None = Field(None, description="one of these texts")
    grammar: str | None = Field(None, description="EBNF as llama.cpp's GBNF has it, with a rule root")


class StructuredFields(Body):
    """The fields of a request that say what its answer must look like."""

    response_format: ResponseFormat | None = Field(None, description="text, a JSON object, or JSON by a schema")
    structured_outputs: StructuredOutputs | None = parameter_field("structured_outputs")

    def to_structured(self) -> Structured | None:
        """Raises InvalidRequest where both fields ask for something."""
        asked = self.response_format
        wanted = None if asked is None or isinstance(asked, TextFormat) else _of_format(asked)
        if self.structured_outputs is None:
            return wanted
        if wanted is not None:
            raise InvalidRequest(
                "response_format and structured_outputs are two ways to say one thing", param="structured_outputs"
            )
        return _of_outputs(self.structured_outputs)


def _of_format(asked: ObjectFormat | JsonSchemaFormat) -> Structured:
    if isinstance(asked, ObjectFormat):
        return Structured(json_object=True, param="response_format")
    schema = asked.json_schema
    return Structured(json_schema=json.dumps(schema.schema_), strict=bool(schema.strict), param="response_format")


def _of_outputs(asked: StructuredOutputs) -> Structured:
    schema = asked.json_
    return Structured(
        json_schema=schema if schema is None or isinstance(schema, str) else json.dumps(schema),
        json_object=bool(asked.json_object),
        regex=asked.regex,
        choice=tuple(asked.choice or ()),
        grammar=asked.grammar,
    )
