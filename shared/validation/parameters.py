"""The table of request parameters: name, type, range, default, description, and the APIs that take each.

The range check (`request_limits`), the fields of bodies and their JSON Schemas (`shared.schemas`), the OpenAPI
document, docs/kafka, the comments of inference.proto and the table in docs/api.md follow from it. A batch takes
what the API of its lines takes; Kafka and gRPC take what jobs take.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from shared.validation.parameter_definition import Api, Parameter
from shared.validation.request_parameters import REQUEST_PARAMETERS
from shared.validation.sampling_parameters import SAMPLING_PARAMETERS

PARAMETERS: tuple[Parameter, ...] = SAMPLING_PARAMETERS + REQUEST_PARAMETERS
BY_NAME: Mapping[str, Parameter] = MappingProxyType({each.name: each for each in PARAMETERS})
RANGED: tuple[Parameter, ...] = tuple(each for each in SAMPLING_PARAMETERS if each.kind in {"integer", "number"})
LISTS: tuple[Parameter, ...] = tuple(each for each in SAMPLING_PARAMETERS if each.kind.startswith("list of "))


def fields(api: Api) -> Mapping[str, Parameter]:
    """Return the parameters that `api` takes, by the names of its fields."""
    return {name: each for each in PARAMETERS if api in each.names for name in each.names[api] or (each.name,)}
