"""Constraints on an answer: OpenAI's `response_format` and vLLM's `structured_outputs`.

References: OpenAI API, "Structured model outputs"; vLLM, "Structured Outputs". `shared.validation.schema_check`
checks the schemas.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import msgspec
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


class JsonFormat(Body):
    """Any JSON object, or JSON that matches a schema: in `schema`, or in TGI's `value`."""

    type: Literal["json_object", "json"]
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="a JSON schema of the answer")
    value: dict[str, Any] | None = Field(None, description="another name of schema")


class RegexFormat(Body):
    """TGI's form of a regular expression."""

    type: Literal["regex"]
    value: str


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: SchemaFormat


GUIDED = ("json", "regex", "choice", "grammar")  # fields of vLLM's older form, without guided_
_CONSTRAINTS = frozenset({"response_format", "structured_outputs", *(f"guided_{name}" for name in GUIDED)})
ResponseFormat = Annotated[TextFormat | JsonFormat | RegexFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Body):
    """vLLM's form; exactly one field must be set."""

    json_: dict[str, Any] | str | None = Field(
        None, alias="json", description="a JSON schema, as an object or as text; enforced in full, or refused"
    )
    json_object: bool | None = Field(None, description="any JSON object")
    regex: str | None = Field(None, description="a regular expression for the whole answer")
    choice: Items[str] | None = Field(None, description="one of these texts")
    grammar: str | None = Field(
        None, description="a grammar in Lark, with a rule start, or in llama.cpp's GBNF, with a rule root"
    )


class StructuredFields(Body):
    """Fields that constrain the answer."""

    response_format: ResponseFormat | None = Field(
        None, description="text, a JSON object, or JSON that matches a schema"
    )
    structured_outputs: StructuredOutputs | None = parameter_field("structured_outputs")

    guided_json: dict[str, Any] | str | None = Field(None, description="older form of structured_outputs.json")
    guided_regex: str | None = Field(None, description="older form of structured_outputs.regex")
    guided_choice: Items[str] | None = Field(None, description="older form of structured_outputs.choice")
    guided_grammar: str | None = Field(None, description="older form of structured_outputs.grammar")

    def to_structured(self) -> Structured | None:
        """Return the constraint. Raise InvalidRequest if several fields set one."""
        if _CONSTRAINTS.isdisjoint(self.model_fields_set):
            return None
        form, outputs = self.response_format, self.structured_outputs
        constraints = {
            "response_format": None if form is None or isinstance(form, TextFormat) else _from_format(form),
            "structured_outputs": None if outputs is None else _from_outputs(outputs),
            **{f"guided_{name}": self._guided(name) for name in GUIDED},
        }
        given = {name: value for name, value in constraints.items() if value is not None}
        if len(given) > 1:
            *_, last = given
            raise InvalidRequest(f"{' and '.join(given)} must not both be set", param=last)
        return next(iter(given.values()), None)

    def _guided(self, name: str) -> Structured | None:
        value = getattr(self, f"guided_{name}")
        if value is None:
            return None
        outputs = StructuredOutputs.model_construct(**{"json_" if name == "json" else name: value})
        return msgspec.structs.replace(_from_outputs(outputs), param=f"guided_{name}")


def _from_format(form: JsonFormat | RegexFormat | JsonSchemaFormat) -> Structured:
    param = "response_format"
    if isinstance(form, RegexFormat):
        return Structured(regex=form.value, param=param)
    if isinstance(form, JsonSchemaFormat):
        named = form.json_schema
        return Structured(json_schema=json.dumps(named.schema_), strict=bool(named.strict), param=param)
    schema = form.value if form.schema_ is None else form.schema_
    if schema is None:
        return Structured(json_object=True, param=param)
    return Structured(json_schema=json.dumps(schema), strict=False, param=param)


def _from_outputs(outputs: StructuredOutputs) -> Structured:
    schema = outputs.json_
    return Structured(
        json_schema=schema if schema is None or isinstance(schema, str) else json.dumps(schema),
        json_object=bool(outputs.json_object),
        regex=outputs.regex,
        choice=tuple(outputs.choice or ()),
        grammar=outputs.grammar,
    )
