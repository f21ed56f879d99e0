"""Constraints on an answer: OpenAI's `response_format` and vLLM's `structured_outputs`.

References: OpenAI API, "Structured model outputs"; vLLM, "Structured Outputs". `shared.validation.json_schema`
checks the schemas.
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
        description="refuse a schema that cannot be enforced in full; otherwise enforce it as far as possible",
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
    """vLLM's form; exactly one field must be set."""

    json_: dict[str, Any] | str | None = Field(
        None, alias="json", description="a JSON schema, as an object or as text; enforced in full, or refused"
    )
    json_object: bool | None = Field(None, description="any JSON object")
    regex: str | None = Field(None, description="a regular expression for the whole answer")
    choice: Items[str] | None = Field(None, description="one of these texts")
    grammar: str | None = Field(None, description="EBNF in llama.cpp's GBNF syntax, with a rule root")


class StructuredFields(Body):
    """Fields that constrain the answer."""

    response_format: ResponseFormat | None = Field(
        None, description="text, a JSON object, or JSON that matches a schema"
    )
    structured_outputs: StructuredOutputs | None = parameter_field("structured_outputs")

    def to_structured(self) -> Structured | None:
        """Return the constraint. Raise InvalidRequest if both fields set one."""
        form = self.response_format
        from_format = None if form is None or isinstance(form, TextFormat) else _from_format(form)
        if self.structured_outputs is None:
            return from_format
        if from_format is not None:
            raise InvalidRequest(
                "response_format and structured_outputs must not both be set", param="structured_outputs"
            )
        return _from_outputs(self.structured_outputs)


def _from_format(form: ObjectFormat | JsonSchemaFormat) -> Structured:
    if isinstance(form, ObjectFormat):
        return Structured(json_object=True, param="response_format")
    schema = form.json_schema
    return Structured(json_schema=json.dumps(schema.schema_), strict=bool(schema.strict), param="response_format")


def _from_outputs(outputs: StructuredOutputs) -> Structured:
    schema = outputs.json_
    return Structured(
        json_schema=schema if schema is None or isinstance(schema, str) else json.dumps(schema),
        json_object=bool(outputs.json_object),
        regex=outputs.regex,
        choice=tuple(outputs.choice or ()),
        grammar=outputs.grammar,
    )
