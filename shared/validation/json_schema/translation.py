"""Translation of a JSON schema to the keywords that the grammar compiler enforces exactly.

Every value that fits the translation fits the schema, except for keywords that are not held. With `strict`, such a
keyword is an error that names it and its place; otherwise it is left out and reported. Unknown keywords and
annotations do not constrain, as JSON Schema says, and are left out.

The translation may be narrower than the schema: an object that lists its properties and says nothing about others
has no others, and numbers stay within the range in which floats are exact.

Reference: JSON Schema 2020-12.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from shared.errors import InvalidRequest
from shared.validation.json_schema import keywords
from shared.validation.json_schema.combined_patterns import check_combined_patterns
from shared.validation.json_schema.disjoint import are_disjoint
from shared.validation.json_schema.ecma_regex import UnsupportedRegexError, to_rust
from shared.validation.json_schema.parsing import Schema, check_shapes
from shared.validation.json_schema.parts import Part, Place
from shared.validation.json_schema.property_names import pattern_of_names
from shared.validation.json_schema.references import References

MAX_SUBSCHEMAS = 5_000  # subschemas of one schema, or of all tools: each is checked before the request is queued
MAX_PATH_CHARS = 128


@dataclass(frozen=True)
class TranslatedSchema:
    """A schema for the grammar compiler.

    Attributes:
        not_held: names of the keywords that it does not enforce, each once.
        size: number of subschemas; booleans do not count.
    """

    schema: Schema
    not_held: tuple[str, ...]
    size: int


def translate_schema(schema: Schema, param: str, *, strict: bool) -> TranslatedSchema:
    """Translate a schema for the grammar compiler.

    Raises InvalidRequest, naming `param`, for a malformed schema, for more than MAX_SUBSCHEMAS subschemas, and with
    `strict` for a keyword that cannot be held.
    """
    return _Translation(schema, param, strict=strict).run()


def check_subschema_count(count: int, param: str) -> None:
    """Raise InvalidRequest for more than MAX_SUBSCHEMAS subschemas in one schema or in those of all tools."""
    if count > MAX_SUBSCHEMAS:
        raise InvalidRequest(
            f"a schema, or those of all tools together, must have at most {MAX_SUBSCHEMAS} subschemas", param=param
        )


class _Translation:
    def __init__(self, root: Schema, param: str, *, strict: bool) -> None:
        self._root = root
        self._param = param
        self._strict = strict
        self._references = References(root)
        self._not_held: dict[str, None] = {}
        self._size = 0
        # names of translated definitions, by reference and by whether they may be closed
        self._names: dict[tuple[str, bool], str] = {}
        self._pending: list[tuple[str, Any, Place]] = []

    def run(self) -> TranslatedSchema:
        schema = self._schema(self._root, Place((), closed=True))
        definitions: dict[str, Schema] = {}
        while self._pending:  # not by recursion: references may form a chain of any length
            name, target, place = self._pending.pop()
            definitions[name] = self._schema(target, place)
        if isinstance(schema, dict):
            check_combined_patterns(schema, definitions, self._param)
            if definitions:
                schema = {**schema, "$defs": definitions}
        return TranslatedSchema(schema, tuple(self._not_held), self._size)

    def _fail(self, keyword: str, place: Place, reason: str = "") -> None:
        """Report a keyword that is not held. Raise InvalidRequest with `strict`."""
        if self._strict:
            where = "#" + "".join(f"/{name.replace('~', '~0').replace('/', '~1')}" for name in place.path)
            raise InvalidRequest(
                f"the schema cannot be enforced strictly: {keyword} at {where[:MAX_PATH_CHARS]} is not supported"
                + (f": {reason}" if reason else ""),
                param=self._param,
            )
        self._not_held[keyword] = None

    def _schema(self, schema: Any, place: Place) -> Schema:
        if isinstance(schema, bool):
            return schema
        self._size += 1
        check_subschema_count(self._size, self._param)
        check_shapes(schema, self._param)
        alone = len(keywords.ASSERTIONS & schema.keys()) == 1
        combined = not keywords.IN_PLACE.isdisjoint(schema)
        part = Part(schema, place, place.child(closed=not combined), place.child(closed=alone))
        for name in schema:
            if (rule := self._RULES.get(name)) is not None:
                rule(self, part, name, schema[name])
        self._bounds(part)
        self._property_names(part)
        self._close(part)
        if part.also:
            part.out["allOf"] = part.out.get("allOf", []) + part.also
        return part.out

    # One rule per group of keywords. Each adds to `part.out` what the compiler enforces.

    def _type(self, part: Part, name: str, value: Any) -> None:
        given = value if isinstance(value, list) else [value]
        if keywords.TYPES.issuperset(given):
            part.out[name] = value
        else:
            self._fail(name, part.place, "a type must be one of " + ", ".join(sorted(keywords.TYPES)))

    def _constant(self, part: Part, name: str, value: Any) -> None:
        if keywords.is_writable(value):
            part.out[name] = value
        else:
            self._fail(name, part.place, "it contains an integer beyond 2**53 or a control character")

    def _count(self, part: Part, name: str, value: float) -> None:
        part.out[name] = min(int(value), keywords.MAX_COUNT)

    def _multiple(self, part: Part, name: str, value: float) -> None:
        if keywords.is_multiple_supported(value):
            part.out[name] = value
        else:
            self._fail(name, part.place, "it has too many digits")

    def _pattern(self, part: Part, name: str, value: str) -> None:
        try:
            part.out[name] = to_rust(value)
        except UnsupportedRegexError as error:
            self._fail(name, part.place, str(error))

    def _format(self, part: Part, name: str, value: str) -> None:
        if (pattern := keywords.FORMAT_PATTERNS.get(value)) is not None:
            part.also.append({"pattern": pattern})
        elif value in keywords.FORMATS:
            part.out[name] = value
        elif value in keywords.UNSUPPORTED_FORMATS:
            self._fail(name, part.place)

    def _bounds(self, part: Part) -> None:
        """Write the bounds of numbers as inclusive ones within the range of exact floats."""
        for name, bound, keyword in keywords.inclusive_bounds(part.schema):
            if bound is None:
                self._fail(keyword, part.place, "it is beyond 2**53")
            else:
                part.out[name] = bound
                if part.schema.get("type") != "integer":
                    part.out.setdefault("multipleOf", keywords.LEAST_STEP)

    def _reference(self, part: Part, name: str, value: str) -> None:
        target = self._references.find(value)
        if target is None and value.startswith("#/") and not self._references.has_resources:
            raise InvalidRequest(f"the schema's {name} must point to a part of the schema", param=self._param)
        if target is None:
            self._fail(name, part.place, "it must point to a part of this schema, like #/$defs/name")
            return
        key = (value, part.combined.closed)
        if key not in self._names:
            self._names[key] = str(len(self._names))
            path = tuple(each.replace("~1", "/").replace("~0", "~") for each in value.split("/")[1:])
            self._pending.append((self._names[key], target, Place(path, part.combined.closed)))
        reference = {"$ref": f"#/$defs/{self._names[key]}"}
        if "$ref" in part.out:
            part.also.append(reference)
        else:
            part.out.update(reference)

    def _all_of(self, part: Part, name: str, value: list[Any]) -> None:
        closed = len(value) == 1
        part.out[name] = [
            self._schema(each, part.combined.child(name, str(i), closed=closed)) for i, each in enumerate(value)
        ]

    def _any_of(self, part: Part, name: str, value: list[Any]) -> None:
        options = [self._schema(each, part.combined.child(name, str(i))) for i, each in enumerate(value)]
        if name == "oneOf" and not are_disjoint(value, self._references.resolve):
            self._fail(
                name, part.place, "the options may overlap; give each its own type, or its own constant in a "
                "required property of type object",
            )  # fmt: skip
        if "anyOf" in part.out:
            part.also.append({"anyOf": options})
        else:
            part.out["anyOf"] = options

    def _map(self, part: Part, name: str, value: dict[str, Any]) -> None:
        part.out[name] = {each: self._schema(inner, part.inner.child(name, each)) for each, inner in value.items()}

    def _pattern_properties(self, part: Part, name: str, value: dict[str, Any]) -> None:
        made: dict[str, Schema] = {}
        for pattern, inner in value.items():
            try:
                written = to_rust(pattern)
            except UnsupportedRegexError as error:
                self._fail(name, part.place, str(error))
                continue
            schema = self._schema(inner, part.inner.child(name, pattern, closed=False))
            made[written] = {"allOf": [made[written], schema]} if written in made else schema
        if made:
            part.out[name] = made

    def _one(self, part: Part, name: str, value: Any) -> None:
        part.out[name] = self._schema(value, part.inner.child(name))

    def _items(self, part: Part, name: str, value: Any) -> None:
        if not isinstance(value, list):
            self._one(part, name, value)
            return
        part.out["prefixItems"] = self._list(part, name, value)
        if (others := part.schema.get("additionalItems")) is not None:
            part.out[name] = self._schema(others, part.inner.child("additionalItems"))

    def _prefix_items(self, part: Part, name: str, value: list[Any]) -> None:
        if not isinstance(part.schema.get("items"), list):
            part.out[name] = self._list(part, name, value)

    def _list(self, part: Part, name: str, value: list[Any]) -> list[Schema]:
        return [self._schema(each, part.inner.child(name, str(i))) for i, each in enumerate(value)]

    def _required(self, part: Part, name: str, value: Any) -> None:
        if isinstance(value, list):
            part.out[name] = value

    def _num_properties(self, part: Part, name: str, value: float) -> None:
        required = part.schema.get("required")
        needed = len(set(required)) if isinstance(required, list) else 0
        named = part.schema.get("properties", {})
        count = int(value)
        closed = part.closes or (
            part.schema.get("additionalProperties") is False and not part.schema.get("patternProperties")
        )
        if count <= needed if name == "minProperties" else closed and count >= len(named):
            return
        if any(each not in (required or ()) for each in named) and not (closed and count == 1):
            self._fail(name, part.place, "all named properties must be required")
            return
        part.out[name] = min(count, keywords.MAX_COUNT)
        if name == "minProperties" and count - needed > 1 and not closed:
            self._fail(name, part.place, "a grammar cannot count different names; it may exceed the required by 1")

    def _property_names(self, part: Part) -> None:
        """Write the names of a map without named properties as a pattern of its properties."""
        names = part.schema.get("propertyNames", True)
        if keywords.is_trivial(names) or keywords.asserted(names) == {"type": "string"}:
            return
        others = {"properties", "patternProperties", "minProperties", "required"} & part.schema.keys()
        pattern = pattern_of_names(names)
        if pattern is None or others:
            self._fail(
                "propertyNames", part.place, "only a pattern or a list of names is, for maps of any properties"
            )
            return
        part.out["patternProperties"] = {pattern: part.out.get("additionalProperties", True)}
        part.out["additionalProperties"] = False

    def _dependencies(self, part: Part, name: str, value: dict[str, Any]) -> None:
        for trigger, needed in value.items():
            if needed == [] or keywords.is_trivial(needed):
                continue
            if isinstance(needed, list):
                present: Schema = {"properties": {trigger: True}, "required": needed}
            else:
                present = self._schema(needed, part.place.child(name, trigger, closed=False))
            part.also.append({"anyOf": [{"properties": {trigger: False}}, present]})

    def _unevaluated(self, part: Part, name: str, value: Any) -> None:
        like = "items" if name == "unevaluatedItems" else "additionalProperties"
        applicators = keywords.IN_PLACE | {"if", "contains", "dependentSchemas", "dependencies", "propertyNames"}
        given = part.schema.get(like)
        if keywords.is_trivial(value):
            return
        if not applicators.isdisjoint(part.schema):
            self._fail(name, part.place, "it cannot be combined with references and combinations of schemas")
        elif given is None or (isinstance(given, list) and "additionalItems" not in part.schema):
            part.out[like] = self._schema(value, part.inner.child(name))

    def _refuse(self, part: Part, name: str, value: Any) -> None:
        """Handle a keyword that no grammar can hold, but that may have no effect."""
        given = part.schema
        has_effect = {
            "uniqueItems": value and given.get("maxItems", 2) > 1,
            "not": value is not False,
            "if": not all(keywords.is_trivial(given.get(each, True)) for each in ("then", "else")),
            "contains": given.get("minContains", 1) > 0 or "maxContains" in given,
        }
        if has_effect[name]:
            self._fail(name, part.place)

    def _close(self, part: Part) -> None:
        """Allow no other properties in an object that lists its properties and says nothing about others."""
        if part.closes and "properties" in part.out:
            for name in part.out.get("required", ()):
                part.out["properties"].setdefault(name, True)
            part.out["additionalProperties"] = False

    _RULES: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "type": _type,
            **dict.fromkeys(("const", "enum"), _constant),
            **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _count),
            **dict.fromkeys(("minProperties", "maxProperties"), _num_properties),
            "multipleOf": _multiple,
            "pattern": _pattern,
            "format": _format,
            **dict.fromkeys(("$ref", "$dynamicRef", "$recursiveRef"), _reference),
            "allOf": _all_of,
            **dict.fromkeys(("anyOf", "oneOf"), _any_of),
            "properties": _map,
            "patternProperties": _pattern_properties,
            "additionalProperties": _one,
            "required": _required,
            **dict.fromkeys(("dependentRequired", "dependentSchemas", "dependencies"), _dependencies),
            "items": _items,
            "prefixItems": _prefix_items,
            **dict.fromkeys(("unevaluatedItems", "unevaluatedProperties"), _unevaluated),
            **dict.fromkeys(("uniqueItems", "not", "if", "contains"), _refuse),
        }
    )
