"""The documents in docs/kafka agree with the record types."""

from __future__ import annotations

import json
from pathlib import Path

from headrace.docs_gen.kafka import FOLDER, documents
from shared.kafka.message import KafkaRequest

ROOT = Path(__file__).parents[3]


def test_the_documents_are_current() -> None:
    """If this fails, run scripts/kafka-doc."""
    for name, text in documents().items():
        assert (ROOT / FOLDER / name).read_text(encoding="utf-8") == text


def test_every_reference_resolves() -> None:
    found = {name: json.loads(text) for name, text in documents().items()}

    def check(node: object, name: str) -> None:
        if isinstance(node, list):
            for each in node:
                check(each, name)
        if isinstance(node, dict):
            for key, value in node.items():
                check(value, name)
                if key == "$ref":
                    path, _, fragment = value.removeprefix("./").partition("#/")
                    at = found[path or name]
                    for part in filter(None, fragment.split("/")):
                        at = at[part]

    for name, document in found.items():
        check(document, name)
    assert set(found["request.schema.json"]["properties"]) == set(KafkaRequest.model_fields)
    assert found["asyncapi.json"]["channels"]["requests"]["address"] == "headrace.requests.{model}"
