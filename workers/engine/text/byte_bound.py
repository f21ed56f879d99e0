"""A lower bound on the tokens of a text, from its bytes alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, models

KEEPING = ("ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "UnicodeScripts")
NFC_SHRINKS = 3  # canonical composition shortens UTF-8 at most to a third (UAX #15, maximum expansion factors)
PRINTABLE = (range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100))  # bytes that a vocabulary writes as they are


@dataclass(frozen=True)
class ByteBound:
    """Of one tokenizer.

    Attributes:
        per_token: most bytes that one token covers.
        dropped: bytes that the vocabulary lacks; the tokenizer drops them, or makes one unknown token of many.
    """

    per_token: int
    dropped: bytes = b""

    def least_tokens(self, text: bytes) -> int:
        """Return how many tokens the text has at least."""
        kept = len(text.translate(None, self.dropped)) if self.dropped else len(text)
        return -(-kept // self.per_token)

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer) -> ByteBound | None:
        """Return the bound of a byte-level BPE, where every byte of a text is in exactly one token.

        None for all others: a WordPiece makes one unknown token of a word of any length, a normalizer may drop
        text, and so may a special token that strips the space beside it.
        """
        shrinks = _shrinks(tokenizer.normalizer)
        if not isinstance(tokenizer.model, models.BPE) or shrinks is None or not _keeps(tokenizer.pre_tokenizer):
            return None
        added = tokenizer.get_added_tokens_decoder().values()
        if any(token.lstrip or token.rstrip for token in added):
            return None
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        lengths = [*map(len, vocabulary), *(len(token.content.encode()) for token in added)]  # a character a byte
        dropped = bytes(byte for byte, letter in _alphabet().items() if letter not in vocabulary)
        return cls(max(lengths) * shrinks, dropped)


def _alphabet() -> dict[int, str]:
    """How a byte-level vocabulary writes each byte (GPT-2's `bytes_to_unicode`)."""
    printable = [byte for part in PRINTABLE for byte in part]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _keeps(pre_tokenizer: Any) -> bool:
    """It is byte-level, and no step removes what it splits at."""
    if pre_tokenizer is None:
        return False
    found = _described(pre_tokenizer)
    steps = found["pretokenizers"] if found["type"] == "Sequence" else [found]
    kept = all(step["type"] in KEEPING and step.get("behavior") != "Removed" for step in steps)
    return kept and any(step["type"] == "ByteLevel" for step in steps)


def _shrinks(normalizer: Any) -> int | None:
    """By how much a normalizer may shorten a text; None where that has no bound."""
    if normalizer is None:
        return 1
    return NFC_SHRINKS if _described(normalizer)["type"] == "NFC" else None


def _described(part: Any) -> dict[str, Any]:
    """A part of a tokenizer as tokenizer.json has it."""
    described: dict[str, Any] = json.loads(part.__getstate__())
    return described
