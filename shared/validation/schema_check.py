"""Check of the JSON schemas of a request, and the keywords of them that its answer is not held to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from shared.errors import InvalidRequest
from shared.protocol import Request
from shared.validation.json_schema.parsing import parse_schema
from shared.validation.json_schema.translation import translate_schema

MAX_SCHEMA_DEPTH = 64
MAX_CACHED_SCHEMAS = 256  # results of checks, by schema; a schema has at most 64 KiB
NOT_HELD = "headrace-schema-not-held"  # header of a Kafka result; of an HTTP response, and in gRPC, after `x-`


class SchemaFacts(NamedTuple):
    """Number of subschemas of a schema, and the names of keywords that answers are not held to."""

    size: int
    not_held: tuple[str, ...]


@lru_cache(MAX_CACHED_SCHEMAS)
def check_schema(text: str, param: str, *, strict: bool, of_object: bool = False) -> SchemaFacts:
    """Check a schema, given as JSON text. Raises InvalidRequest.

    Cached, since all prompts of one request share a schema, and successive requests tend to use the same one.

    Args:
        strict: refuse a keyword that an answer cannot be held to.
        of_object: refuse a schema of anything but objects.
    """
    schema = parse_schema(text, param, depth=MAX_SCHEMA_DEPTH)
    if of_object and (not isinstance(schema, dict) or schema.get("type", "object") != "object"):
        raise InvalidRequest("the schema must have the type object", param=param)
    translated = translate_schema(schema, param, strict=strict)
    return SchemaFacts(translated.size, translated.not_held)


def not_held(requests: Sequence[Request]) -> str:
    """Return the keywords that the answers to checked requests are not held to, for NOT_HELD; or an empty string.

    There are as many names at most as keywords of JSON Schema.
    """
    return ", ".join(dict.fromkeys(name for request in requests for name in _not_held(request)))


def _not_held(request: Request) -> Iterator[str]:
    structured = request.params.structured_outputs
    if structured is not None and structured.json_schema is not None and not structured.strict:
        yield from check_schema(structured.json_schema, structured.param, strict=False).not_held
    for i, function in enumerate(request.tools.functions if request.tools is not None else ()):
        if function.parameters and not function.strict:
            param = f"tools[{i}].function.parameters"
            yield from check_schema(function.parameters, param, strict=False, of_object=True).not_held
