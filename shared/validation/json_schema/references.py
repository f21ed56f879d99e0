"""References within a JSON schema: `$ref` and its kin, to JSON pointers and anchors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from shared.numbers import whole
from shared.validation.json_schema.parsing import Schema

MAX_HOPS = 16  # references that lead to another reference, when an option of oneOf is resolved
_DATA = ("const", "enum", "default", "examples", "example")  # their values are no schemas


class References:
    """The places in one schema that references can point to.

    Attributes:
        has_resources: the schema contains others that have an identifier of their own.
    """

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._base = ""
        if isinstance(root, dict):
            self._base = next((root[name] for name in ("$id", "id") if isinstance(root.get(name), str)), "")
        self._anchors: dict[str, Any] = {}
        self.has_resources = False
        for part in _objects(root):
            self._register(part)

    def _register(self, part: dict[str, Any]) -> None:
        identifier = part.get("$id")
        if isinstance(identifier, str) and part is not self._root:
            if identifier.startswith("#"):
                self._anchors[identifier[1:]] = part
            else:
                self.has_resources = True
        for name in ("$anchor", "$dynamicAnchor"):
            if isinstance(anchor := part.get(name), str):
                self._anchors[anchor] = None if anchor in self._anchors else part

    def find(self, reference: str) -> Schema | None:
        """Return the schema that a reference points to.

        None if it is not in this schema, or if the schema contains others that have an identifier of their own, in
        which references may mean something else.
        """
        base, has_fragment, fragment = reference.partition("#")
        if self.has_resources or base not in ("", self._base.rstrip("#")) or not (has_fragment or base):
            return None
        name = unquote(fragment)
        found = self._point(name) if not name or name.startswith("/") else self._anchors.get(name)
        return found if isinstance(found, dict | bool) else None

    def resolve(self, schema: Any) -> Any:
        """Return what a schema with a `$ref` points to, and any other schema as it is."""
        for _ in range(MAX_HOPS):
            reference = schema.get("$ref") if isinstance(schema, dict) else None
            if not isinstance(reference, str) or (target := self.find(reference)) is None:
                return schema
            schema = target
        return schema

    def _point(self, pointer: str) -> Any:
        found: Any = self._root
        for part in pointer.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and name in found:
                found = found[name]
            elif isinstance(found, list) and (index := whole(name)) is not None and index < len(found):
                found = found[index]
            else:
                return None
        return found


def _objects(root: Any) -> Iterator[dict[str, Any]]:
    pending = [root]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            yield part
            pending += [value for name, value in part.items() if name not in _DATA]
        elif isinstance(part, list):
            pending += part
