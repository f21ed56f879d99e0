"""Every field that OpenAI's package can send is in our schemas, honoured or refused by name, and documented."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params

from shared.schemas.openai.chat import UNSUPPORTED, ChatRequest
from shared.schemas.openai.completions import CompletionRequest
from shared.schemas.openai.embeddings import EmbeddingRequest
from shared.schemas.parsing import InvalidFields, validate

DOCS = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("schema", "params"),
    [
        (ChatRequest, chat_create_params.CompletionCreateParamsStreaming),
        (CompletionRequest, completion_create_params.CompletionCreateParamsStreaming),
        (EmbeddingRequest, embedding_create_params.EmbeddingCreateParams),
    ],
)
def test_every_field_is_known_and_documented(schema: Any, params: Any) -> None:
    names = {name for each in params.__mro__ for name in getattr(each, "__annotations__", {})} | set(
        getattr(params, "__required_keys__", ()) | getattr(params, "__optional_keys__", ())
    )
    assert "model" in names
    assert names <= set(schema.model_fields), "the SDK can send more"
    table = "".join(line for line in DOCS.splitlines(keepends=True) if line.startswith("| `"))
    assert not {name for name in names if not re.search(f"`{name}`", table)}, "not in docs/api.md"


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_what_is_not_supported_is_refused_by_name(name: str) -> None:
    """Given an unsupported field, a value with an effect is refused, and a neutral value is accepted."""
    body = '{"model": "m", "messages": [{"role": "user", "content": "x"}], "%s": %s}'
    with pytest.raises(InvalidFields) as refused:
        validate((body % (name, '{"x": "y"}')).encode(), ChatRequest)
    assert refused.value.param == name
    validate((body % (name, "null")).encode(), ChatRequest)
