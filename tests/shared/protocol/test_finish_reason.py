"""Finish reasons: decided by an enum here, open for readers of another version."""

from __future__ import annotations

import msgspec
import pytest

from shared.protocol import FinishReason
from shared.schemas.native.jobs import JobChoice
from shared.schemas.openai.chat import Choice, ChunkChoice
from shared.schemas.openai.completions import TextChoice


def test_a_limit_or_a_filter_leaves_a_choice_incomplete() -> None:
    incomplete = {FinishReason.LENGTH, FinishReason.CONTENT_FILTER}
    assert {reason for reason in FinishReason if not reason.complete} == incomplete


@pytest.mark.parametrize("struct", [JobChoice, Choice, ChunkChoice, TextChoice], ids=lambda struct: struct.__name__)
def test_schemas_keep_the_finish_reason_open(struct: type[msgspec.Struct]) -> None:
    _, components = msgspec.json.schema_components([struct])
    schema = components[struct.__name__]["properties"]["finish_reason"]
    assert {"type": "string"} in (schema, *schema.get("anyOf", ()))


def test_a_reason_of_a_later_version_is_read() -> None:
    choice = msgspec.json.decode(b'{"index":0,"text":"x","finish_reason":"new"}', type=JobChoice)
    assert choice.finish_reason == "new"


def test_a_reason_is_written_as_its_name() -> None:
    assert b'"finish_reason":"length"' in msgspec.json.encode(TextChoice(0, "x", FinishReason.LENGTH))
