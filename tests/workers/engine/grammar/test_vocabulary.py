"""Vocabulary of a model for grammars: special tokens are no text, and marks of tool calls are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from transformers import PreTrainedTokenizerFast

from shared.errors import InvalidRequest
from tests.support.checkpoints import byte_tokenizer
from workers.engine.grammar.vocabulary import make_vocabulary

BOS, EOS, MARK = 256, 257, 258


def vocabulary(hf: PreTrainedTokenizerFast, eos: frozenset[int] = frozenset({EOS}), size: int = 272) -> LLTokenizer:
    tokenizer: Any = SimpleNamespace(hf=hf, hidden_ids=frozenset({BOS, EOS}))
    return make_vocabulary(tokenizer, size, eos)


def forced(tokens: LLTokenizer, text: str) -> list[int]:
    return LLMatcher(tokens, f'start: "{text}"', log_level=0).compute_ff_tokens()


@pytest.fixture
def hf() -> PreTrainedTokenizerFast:
    made = byte_tokenizer()
    made.backend_tokenizer.add_special_tokens(["<tool_call>"])
    return made


def test_mark_of_a_call_is_forced_as_one_token(hf: PreTrainedTokenizerFast) -> None:
    tokens = vocabulary(hf)
    assert forced(tokens, "<tool_call>{") == [MARK, *hf.encode("{")]


def test_spelling_of_a_special_token_is_forced_as_text(hf: PreTrainedTokenizerFast) -> None:
    found = forced(vocabulary(hf), "<eos>x")
    assert EOS not in found
    assert len(found) == len("<eos>x")


def test_sizes_of_model_and_tokenizer_may_differ(hf: PreTrainedTokenizerFast) -> None:
    assert vocabulary(hf, size=272).vocab_size == 272
    assert vocabulary(hf, size=100).vocab_size == MARK + 1
    assert vocabulary(hf, eos=frozenset()).vocab_size == 273, "one more token ends an answer, which no model draws"


def test_tokenizer_without_bytes_is_refused() -> None:
    made = byte_tokenizer()
    made.backend_tokenizer.decoder = None
    with pytest.raises(InvalidRequest, match="tokenizer"):
        vocabulary(made)
