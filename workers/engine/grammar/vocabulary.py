"""The vocabulary of a model for the grammar compiler: the bytes of each token, and how a text is tokenized.

Special tokens are no text, whatever they are spelled like: a string of an answer does not match one, and a text
that spells one is not forced to be that token. Tokens that mark a tool call are text.
"""

from __future__ import annotations

import json
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper
from tokenizers import Tokenizer as RustTokenizer

from shared.errors import InvalidRequest
from workers.engine.text.tokenizer import Tokenizer


def make_vocabulary(tokenizer: Tokenizer, vocab_size: int, eos_token_ids: frozenset[int]) -> LLTokenizer:
    """Return the vocabulary of a model. Building it takes up to a second.

    Args:
        vocab_size: size of the model's logits, which may exceed the tokenizer's vocabulary.

    Raises:
        InvalidRequest: the tokenizer is of a kind that grammars cannot be used with.
    """
    return LLTokenizer(
        _Vocabulary(tokenizer, vocab_size, sorted(eos_token_ids)), eos_token=sorted(eos_token_ids) or None
    )


class _Vocabulary(TokenizerWrapper):
    """Tokens and tokenizer in the form that `LLTokenizer` reads."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos: list[int]) -> None:
        serialized = json.loads(tokenizer.hf.backend_tokenizer.to_str())
        for token in serialized["added_tokens"]:
            token["special"] = token["id"] in tokenizer.hidden_ids
        text = json.dumps(serialized)
        self._backend = RustTokenizer.from_str(text)
        self._backend.encode_special_tokens = True
        self.tokens = _token_bytes(text, serialized["added_tokens"], vocab_size)
        self.special_token_ids = [index for index in tokenizer.hidden_ids if index < len(self.tokens)]
        self.eos_token_id = eos[0] if eos else None  # type: ignore[assignment]  # None: `LLTokenizer` adds a token

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids


def _token_bytes(serialized: str, added: list[dict[str, Any]], vocab_size: int) -> list[bytes]:
    """Return the bytes of each token of the vocabulary, and none for logits without a token."""
    try:
        plain = LLTokenizer(serialized)
    except ValueError:
        raise InvalidRequest("this model's tokenizer cannot be used with structured output or tools") from None
    size = max(plain.vocab_size, vocab_size)
    found = [plain.decode_bytes([index]) if index < plain.vocab_size else b"" for index in range(size)]
    for token in added:
        found[token["id"]] = token["content"].encode()
    return found
