"""Body fields of request parameters: description and JSON Schema bounds from shared.validation.parameters.

`shared.validation.request_limits` enforces the bounds, for every transport.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, create_model

from shared.models.names import MAX_MODEL_NAME_CHARS
from shared.schemas.openapi_bounds import Items
from shared.validation.parameter_definition import Api, Parameter
from shared.validation.parameters import BY_NAME, PARAMETERS

MAX_OBJECT_KEYS = 64  # of an object in a list
BoundedObject = Annotated[dict[str, Any], Field(max_length=MAX_OBJECT_KEYS)]
Model = TypeVar("Model", bound=BaseModel)
TYPES: Mapping[str, Any] = {
    "integer": int,
    "number": float,
    "boolean": bool,
    "string": str,
    "list of strings": Items[str],
    "list of integers": Items[int],
    "object": dict[str, Any],
    "list of objects": Items[BoundedObject],
}


def parameter_field(name: str, *, default: object = None, maximum: float | None = None, note: str = "") -> Any:
    """Return the field of a parameter, None when absent.

    Where a setting lowers the maximum, the schema has the highest value that the setting can have.

    Args:
        name: in the table; the field may have another.
        default, maximum: of this API, for the description, where they differ from the table's.
        note: added to the description.
    """
    parameter = BY_NAME[name]

    def add_bounds(node: dict[str, Any]) -> None:
        _add_bounds(node, parameter)

    return Field(None, description=_with_note(parameter.text(default, maximum), note), json_schema_extra=add_bounds)


def _or_empty(name: Any) -> Any:
    return "" if name is None else name


# An empty name is refused by the check of the request, unless the route or a setting fills it in.
_Name = Annotated[str, BeforeValidator(_or_empty), Field(json_schema_extra={"maxLength": MAX_MODEL_NAME_CHARS})]
ModelName = Annotated[
    _Name, Field(description="name of a served model; may be left out if the setting any_model_name is on")
]
DefaultedModelName = Annotated[_Name, Field(description="name of a served model; default: this server's model")]


def parameter_body(name: str, api: Api, base: type[Model]) -> type[Model]:
    """Return `base` with a field for each parameter that `api` takes under its own name and `base` lacks."""
    own = [each for each in PARAMETERS if api in each.names and (each.names[api] or (each.name,))[0] == each.name]
    missing = [each for each in own if each.name not in base.model_fields]
    values: dict[str, Any] = {each.name: (_type(each) | None, parameter_field(each.name)) for each in missing}
    body: type[Model] = create_model(name, __base__=base, __doc__=base.__doc__, **values)
    return body


def _type(parameter: Parameter) -> Any:
    """Return the type of a body's field. The size of objects is checked here, since the wire has them as text."""
    field_type = TYPES[parameter.kind]
    if "object" in parameter.kind:
        return Annotated[field_type, Field(max_length=parameter.max_items)]
    return field_type


def _with_note(text: str, note: str) -> str:
    return f"{text}; {note}" if note else text


def _add_bounds(node: dict[str, Any], parameter: Parameter) -> None:
    bounds = parameter.json_schema_bounds
    for branch in (node, *node.get("anyOf", ())):
        branch.update(bounds.get(branch.get("type", ""), {}))
        for inner in ("items", "additionalProperties"):
            if isinstance(branch.get(inner), dict):
                branch[inner].update(bounds.get(inner, {}))
