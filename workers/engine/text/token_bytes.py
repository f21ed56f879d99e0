"""Exact bytes of single tokens, as the vocabulary spells them.

Decoding one token alone loses them: half a character becomes U+FFFD, and the space that begins a word is dropped by
the decoders of sentencepiece models.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

MAX_UNFINISHED_BYTES = 3  # of a UTF-8 character
# a byte-level vocabulary writes these bytes as they are
PRINTABLE_BYTES = (range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100))
FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """Bytes of the tokens of one tokenizer: byte-level, sentencepiece with byte fallback, or plain text.

    Attributes:
        joins_bytes: a text is the bytes of its tokens, whatever their context.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        steps = _decoding_steps(tokenizer)
        kinds = {step["type"] for step in steps}
        self._bytes_by_letter = (
            {letter: byte for byte, letter in byte_alphabet().items()} if "ByteLevel" in kinds else None
        )
        self.joins_bytes = kinds == {"ByteLevel"}
        self._falls_back = "ByteFallback" in kinds
        self._drops_space = any(map(_drops_space, steps))
        self._space = _space_mark(steps)

    def __call__(self, token_id: int, *, first: bool = False) -> bytes:
        """Return the bytes that a token stands for; none for an id without a token.

        Args:
            first: the token begins its text, where a sentencepiece model drops a space.
        """
        found = self._spelled(token_id)
        return found.removeprefix(b" ") if first and self._drops_space else found

    def _spelled(self, token_id: int) -> bytes:
        entry: str | None = self._tokenizer.id_to_token(token_id)
        if entry is None:
            return b""
        if self._bytes_by_letter is not None:
            try:
                return bytes([self._bytes_by_letter[letter] for letter in entry])
            except KeyError:  # an added token is spelled as it is
                return entry.encode()
        if self._falls_back and (found := FALLBACK.fullmatch(entry)):
            return bytes.fromhex(found[1])
        if self._space:
            return entry.replace(self._space, " ").encode()
        decoded: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return decoded.encode()

    def end_within_character(self, ids: Iterable[int]) -> bool:
        """Return whether the bytes of these tokens end with the beginning of a character."""
        tail = b"".join(map(self, ids))[-MAX_UNFINISHED_BYTES:]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(tail)
        return bool(decoder.getstate()[0])


def byte_alphabet() -> dict[int, str]:
    """Return the character that a byte-level vocabulary writes for each byte (GPT-2's `bytes_to_unicode`)."""
    printable = [byte for part in PRINTABLE_BYTES for byte in part]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def as_json(part: Any) -> dict[str, Any]:
    """Return a part of a tokenizer in the form of tokenizer.json."""
    described: dict[str, Any] = json.loads(part.__getstate__())
    return described


def _decoding_steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    if tokenizer.decoder is None:
        return []
    found = as_json(tokenizer.decoder)
    steps: list[dict[str, Any]] = found["decoders"] if found["type"] == "Sequence" else [found]
    return steps


def _drops_space(step: dict[str, Any]) -> bool:
    """Return whether a decoding step removes the space that a text begins with."""
    if step["type"] == "Metaspace":
        return bool(step["prepend_scheme"] != "never")
    return bool(step["type"] == "Strip" and step["content"] == " " and step["start"] > 0)


def _space_mark(steps: list[dict[str, Any]]) -> str:
    """Return what a sentencepiece vocabulary writes for a space; empty if it writes a space."""
    for step in steps:
        if step["type"] == "Metaspace":
            mark: str = step["replacement"]
            return mark
        if step["type"] == "Replace" and step["content"] == " ":
            pattern: str = step["pattern"].get("String", "")
            return pattern
    return ""
