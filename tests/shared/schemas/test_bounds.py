"""Every field of every body has a bound in its JSON Schema, and values beyond it are refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from producer_api.schemas.batches import BatchRequest
from producer_api.schemas.feature_extraction import FeatureExtractionRequest
from producer_api.schemas.jobs import JobSubmission
from producer_api.schemas.text_classification import TextClassificationRequest
from producer_api.schemas.tgi import GenerateRequest, TgiLimits
from shared.errors import HeadraceError, InvalidRequest
from shared.kafka.message import KafkaRequest
from shared.models.names import MAX_MODEL_NAME_CHARS
from shared.protocol import Request
from shared.schemas.base import Body
from shared.schemas.encoder_fields import EncoderFields
from shared.schemas.openai.chat import UNSUPPORTED, ChatRequest
from shared.schemas.openai.completions import CompletionRequest
from shared.schemas.openai.responses import UNSUPPORTED as RESPONSES_UNSUPPORTED
from shared.schemas.openai.responses import ResponseRequest
from shared.schemas.openapi_bounds import BOUNDING
from shared.schemas.parsing import validate
from shared.validation.request_limits import Limits, check_together
from shared.validation.request_parameters import MAX_USER_CHARS
from tests.support.request_bodies import GOOD

# without a bound: limited by the setting max_timeout; only neutral values accepted; ignored
EXCEPTIONS = {
    *("timeout", "deadline", "chat_template", "logprobs[]", "annotations[]"),
    *UNSUPPORTED,
    *RESPONSES_UNSUPPORTED,
}
UNBOUNDED = ("accepted, without effect", "not supported: refused unless empty or neutral")
LIMITS = Limits()
TYPES = {"string": str, "integer": int, "number": int | float, "array": list, "object": dict}

Step = str | None  # a property; None: every item, or every value
Path = tuple[Step, ...]


@dataclass(frozen=True)
class Leaf:
    """A place in a body for values of one type."""

    path: Path
    kind: str
    schema: dict[str, Any]

    @property
    def bounded(self) -> bool:
        """Return whether a number has both bounds, or another value a length or a pattern."""
        if self.kind in ("integer", "number"):
            return len(BOUNDING & self.schema.keys()) == 2
        return bool(BOUNDING & self.schema.keys())

    def __str__(self) -> str:
        return ".".join("[]" if step is None else step for step in self.path).replace(".[]", "[]") + f":{self.kind}"


def leaves(node: dict[str, Any], definitions: dict[str, Any], path: Path = ()) -> Iterator[Leaf]:
    """Yield the places of a JSON Schema, without booleans, nulls and constants."""
    if "$ref" in node:
        node = definitions[node["$ref"].rsplit("/", 1)[1]]
    branches = [each for kind in ("anyOf", "oneOf", "allOf") for each in node.get(kind, ())]
    for each in branches:
        yield from leaves(each, definitions, path)
    if "enum" in node or "const" in node or branches:
        return
    kind = node.get("type", "any")
    fixed = kind == "object" and "properties" in node  # unknown fields are ignored
    if kind not in ("null", "boolean") and not fixed and node.get("description") not in UNBOUNDED:
        yield Leaf(path, kind, node)
    if node.get("maxItems") != 0 and isinstance(node.get("items"), dict):
        yield from leaves(node["items"], definitions, (*path, None))
    if isinstance(node.get("additionalProperties"), dict):
        yield from leaves(node["additionalProperties"], definitions, (*path, None))
    for name, each in node.get("properties", {}).items():
        yield from leaves(each, definitions, (*path, name))


def leaves_of(body: type[Body]) -> list[Leaf]:
    schema = body.model_json_schema()
    return list(leaves(schema, schema.get("$defs", {})))


@pytest.mark.parametrize("body", GOOD, ids=lambda body: body.__name__)
def test_every_field_has_a_bound(body: type[Body]) -> None:
    open_ended = {str(leaf).split(":")[0].split(".")[-1] for leaf in leaves_of(body) if not leaf.bounded}
    assert open_ended <= EXCEPTIONS


@pytest.mark.parametrize("body", GOOD, ids=lambda body: body.__name__)
def test_names_have_the_bounds_that_are_enforced(body: type[Body]) -> None:
    places = {str(leaf): leaf.schema.get("maxLength") for leaf in leaves_of(body)}
    found = {name: places.get(f"{name}:string") for name in ("model", "user")}
    generating = body in (ChatRequest, CompletionRequest, ResponseRequest, JobSubmission, KafkaRequest)
    assert found["model"] == (None if body is BatchRequest else MAX_MODEL_NAME_CHARS)
    assert found["user"] == (MAX_USER_CHARS if generating else None)


def refusal(body: type[Body], fields: dict[str, Any]) -> HeadraceError | None:
    """Return the error of a body in the checks that precede those on the server's state."""
    try:
        check_together([seeded(each, fields.get("seed", 0)) for each in drafts(body, fields)], LIMITS)
    except HeadraceError as error:
        return error
    return None


def drafts(body: type[Body], fields: dict[str, Any]) -> list[Request]:
    parsed = validate(json.dumps(fields).encode(), body)
    if isinstance(parsed, BatchRequest):
        return []
    if isinstance(parsed, ChatRequest):
        return [parsed.to_request("t")]
    if isinstance(parsed, CompletionRequest):
        return parsed.to_requests("t")
    if isinstance(parsed, ResponseRequest):
        return [parsed.to_request("t", parsed.to_items())]
    if isinstance(parsed, EncoderFields | FeatureExtractionRequest | TextClassificationRequest):
        return parsed.to_requests("t")
    if isinstance(parsed, GenerateRequest):
        return [parsed.to_request("t", TgiLimits(best_of=8, stop_sequences=16, input_length=None), stream=False)]
    return [parsed.to_request("t")]  # type: ignore[attr-defined]


def seeded(draft: Request, seed: int) -> Request:
    """Return the draft with what admission adds."""
    return msgspec.structs.replace(draft, id="r", params=msgspec.structs.replace(draft.params, seed=seed))


def places(value: Any, path: Path) -> Iterator[tuple[Any, Any]]:
    """Yield the (container, key) of every value at `path`."""
    step, rest = path[0], path[1:]
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value) if step is None else [step] if step in value else []
    elif isinstance(value, list) and step is None:
        keys = list(range(len(value)))
    for key in keys:
        if rest:
            yield from places(value[key], rest)
        else:
            yield value, key


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Return whether `value` and its items have the types of a leaf's schema."""
    kind, items = schema.get("type"), schema.get("items", {})
    if kind not in TYPES or not isinstance(value, TYPES[kind]) or isinstance(value, bool):
        return False
    return kind != "array" or not value or items.get("type") not in TYPES or fits(value[0], items)


def beyond(leaf: Leaf, value: Any) -> Iterator[Any]:
    """Yield values beyond each bound of a leaf with the value `value`."""
    bounds = leaf.schema
    if "pattern" in bounds:
        yield "\x00"
    if "maxLength" in bounds:
        yield "x" * (bounds["maxLength"] + 1)
    if "maxItems" in bounds:
        yield (value or [1])[:1] * (bounds["maxItems"] + 1)
    if "maxProperties" in bounds:
        inner = next(iter(value.values()), 1)
        yield {str(number): inner for number in range(bounds["maxProperties"] + 1)}
    for name, step in (("maximum", 1), ("minimum", -1), ("exclusiveMaximum", 0), ("exclusiveMinimum", 0)):
        if name in bounds:
            yield bounds[name] + step


@pytest.mark.parametrize("body", GOOD, ids=lambda body: body.__name__)
def test_values_beyond_a_bound_are_refused(body: type[Body]) -> None:
    """Given the first valid body with a value, when it goes beyond its bound, the body is refused."""
    for good in GOOD[body]:
        assert refusal(body, good) is None, good
    tried, wanted = set(), {str(leaf) for leaf in leaves_of(body) if leaf.bounded}
    for leaf in leaves_of(body):
        for good in GOOD[body] if leaf.bounded else ():
            if str(leaf) in tried:
                break
            changed = copy.deepcopy(good)
            for container, key in places(changed, leaf.path):
                before = container[key]
                if not fits(before, leaf.schema):
                    continue
                for over in beyond(leaf, before):
                    container[key] = over
                    assert isinstance(refusal(body, changed), InvalidRequest), (str(leaf), str(over)[:60])
                    tried.add(str(leaf))
                container[key] = before
    assert tried == wanted
