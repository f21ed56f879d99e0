"""Structured outputs of a real model on a small scale: every answer fits its schema."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

from headrace.bench.engine import structured
from headrace.bench.engine.schemas import make_schemas
from headrace.bench.engine.structured import _defect, measure_structured
from shared.validation.json_schema.keywords import ASSERTIONS
from shared.validation.json_schema.translation import translate_schema


@pytest.mark.slow
def test_all_answers_fit(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structured, "SPEED_TOKENS", 4)
    monkeypatch.setattr(structured, "BATCH_SIZE", 4)
    found = measure_structured(str(smollm2), 4, 1, 1, Console(quiet=True))
    assert not found.wrong
    assert found.valid == 4
    assert found.slower is not None


def test_schemas_are_varied_and_can_be_enforced() -> None:
    """Given the generated schemas, each is valid and strictly enforceable, and nearly all keywords occur."""
    schemas = make_schemas(300, 0)
    assert schemas == make_schemas(300, 0)
    for schema in schemas:
        jsonschema.Draft202012Validator.check_schema(schema)
        translate_schema(schema, "schema", strict=True)
    text = json.dumps(schemas)
    used = {keyword for keyword in ASSERTIONS if f'"{keyword}": ' in text}
    assert len({str(schema) for schema in schemas}) > 290
    assert used >= {
        "oneOf",
        "anyOf",
        "$ref",
        "prefixItems",
        "patternProperties",
        "propertyNames",
        "multipleOf",
        "format",
    }


def test_wrong_answers_have_a_defect() -> None:
    schema = {"type": "string", "format": "date"}
    assert _defect(schema, '"2024-02-29"', "stop") is None
    assert _defect(schema, '"2023-02-29"', "stop") == "does not fit: format"
    assert _defect(schema, '"2023', "length") == "ended by length"
    assert _defect(schema, "{", "stop") == "not JSON"
