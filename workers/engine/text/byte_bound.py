"""Lower bound on the number of tokens of a text, from its bytes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, models

from workers.engine.text.token_bytes import as_json, byte_alphabet

LOSSLESS_PRE_TOKENIZERS = ("ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "UnicodeScripts")
# canonical composition shortens UTF-8 at most to a third (UAX #15, maximum expansion factors)
MAX_NFC_SHRINKAGE = 3


@dataclass(frozen=True)
class ByteBound:
    """Lower bound on the tokens of one tokenizer.

    Attributes:
        max_bytes_per_token: most bytes that one token covers.
        dropped_bytes: bytes that the vocabulary lacks: the tokenizer drops them, or merges many into one unknown
            token.
    """

    max_bytes_per_token: int
    dropped_bytes: bytes = b""

    def min_tokens(self, text: bytes) -> int:
        """Return the minimum number of tokens of the text."""
        kept = len(text.translate(None, self.dropped_bytes)) if self.dropped_bytes else len(text)
        return -(-kept // self.max_bytes_per_token)

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer) -> ByteBound | None:
        """Return the bound of a byte-level BPE, where every byte of a text is in exactly one token.

        None for other tokenizers: a WordPiece makes one unknown token of a word of any length, a normalizer may
        drop text, and a special token may strip the space beside it.
        """
        shrinkage = _max_shrinkage(tokenizer.normalizer)
        if not isinstance(tokenizer.model, models.BPE) or shrinkage is None:
            return None
        if not _is_lossless(tokenizer.pre_tokenizer):
            return None
        added = tokenizer.get_added_tokens_decoder().values()
        if any(token.lstrip or token.rstrip for token in added):
            return None
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        lengths = [
            *map(len, vocabulary),
            *(len(token.content.encode()) for token in added),
        ]  # one character per byte
        dropped_bytes = bytes(byte for byte, letter in byte_alphabet().items() if letter not in vocabulary)
        return cls(max(lengths) * shrinkage, dropped_bytes)


def _is_lossless(pre_tokenizer: Any) -> bool:
    """Return whether a pre-tokenizer is byte-level and no step removes the text that it splits at."""
    if pre_tokenizer is None:
        return False
    found = as_json(pre_tokenizer)
    steps = found["pretokenizers"] if found["type"] == "Sequence" else [found]
    kept = all(step["type"] in LOSSLESS_PRE_TOKENIZERS and step.get("behavior") != "Removed" for step in steps)
    return kept and any(step["type"] == "ByteLevel" for step in steps)


def _max_shrinkage(normalizer: Any) -> int | None:
    """Return the factor by which a normalizer may shorten a text; None if it is unbounded."""
    if normalizer is None:
        return 1
    return MAX_NFC_SHRINKAGE if as_json(normalizer)["type"] == "NFC" else None
