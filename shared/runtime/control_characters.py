"""Removal of control characters from texts of others that are written to a terminal."""

from __future__ import annotations

_REMOVED = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\t"), ord("\n")}) | dict.fromkeys(
    range(0xD800, 0xE000), "\ufffd"
)  # and surrogates, which no terminal can be sent


def visible(text: str) -> str:
    """Return a text without control characters: with an escape sequence, it could control the terminal."""
    return text.translate(_REMOVED)
