"""Base class of request bodies."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from shared.schemas.openapi_bounds import LIMITS, add_bounds


class Body(BaseModel):
    """A request body: types are not coerced, numbers are finite; unknown fields are kept in `model_extra`,
    for `shared.schemas.unknown_fields`.
    """

    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, frozen=True, str_max_length=LIMITS.prompt_chars
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        add_bounds(handler.resolve_ref_schema(schema))
        return schema


class IgnoredObject(Body):
    """An object that is accepted and ignored as a whole, and reported as an unknown field is."""


def refuse_unless_neutral(
    neutral: Mapping[str, tuple[Any, ...]], message: str, messages: Mapping[str, str] = MappingProxyType({})
) -> Any:
    """Return a validator that refuses the fields that `neutral` names, except with the values that it lists.

    Args:
        message: the error of fields that `messages` does not name.
    """

    def check(value: Any, info: ValidationInfo) -> Any:
        name = info.field_name or ""
        if value not in neutral[name]:
            raise PydanticCustomError("not_supported", messages.get(name, message))
        return value

    return field_validator(*neutral)(check)
