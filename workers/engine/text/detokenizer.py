"""Incremental detokenizer: it returns whole characters only, and no part of a stop string.

An answer that ends within a character ends before it.

Its state depends only on the tokens fed so far, so feeding the logged tokens again restores it.
"""

from __future__ import annotations

from collections.abc import Callable

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # a decoder writes it for an incomplete character
WINDOW_TOKENS = 16  # decoded together before the window moves on; bounds the work per token
MAX_WINDOW_TOKENS = 64  # for bytes that never form a character
MAX_CHARACTER_TOKENS = 4  # the bytes of one character, each a token of its own


class Detokenizer:
    """Incremental detokenizer of one answer.

    Each token decodes a window of the last tokens again, because a character's bytes or a word's leading space may
    depend on the token before. The replacement characters at the end of a window may still change: a decoder writes
    one for an incomplete character, or one for each of its bytes.

    Args:
        decode: returns the text of token ids.
        ends_within_character: returns whether the bytes of token ids end with the beginning of a character.

    Attributes:
        length: number of characters returned so far.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], ends_within_character: Callable[[list[int]], bool]
    ) -> None:
        self.length = 0
        self._decode = decode
        self._ends_within_character = ends_within_character
        self._window: list[int] = []
        self._emitted = 0  # characters of the window's text already returned

    def feed(self, token_id: int) -> str:
        """Add a token, and return the text that is now final."""
        self._window.append(token_id)
        text = self._decode(self._window)
        whole = not text.endswith(REPLACEMENT)
        settled = text if whole else text.rstrip(REPLACEMENT)
        new = settled[self._emitted :]
        self._emitted = max(self._emitted, len(settled))
        if (whole and len(self._window) >= WINDOW_TOKENS) or len(self._window) >= MAX_WINDOW_TOKENS:
            new += text[self._emitted :]
            self._window = self._last_character() if whole else []
            self._emitted = len(self._decode(self._window)) if whole else 0
        self.length += len(new)
        return new

    def flush(self) -> str:
        """Return the text held back, without an unfinished character; the answer ends here."""
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT) and self._ends_within_character(self._window):
            text = text.rstrip(REPLACEMENT)
        rest = text[self._emitted :]
        self._emitted += len(rest)
        self.length += len(rest)
        return rest

    def _last_character(self) -> list[int]:
        """Return the last tokens of the window that begin where a character does."""
        sizes = range(1, MAX_CHARACTER_TOKENS + 1)
        tails = (self._window[-size:] for size in sizes)
        return next((tail for tail in tails if not self._decode(tail).startswith(REPLACEMENT)), self._window[-1:])


class TextStream:
    """Detokenizer whose text ends before the first stop string.

    Text is held back only while it may be the beginning of a stop string.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        stop: tuple[str, ...] = (),
        ends_within_character: Callable[[list[int]], bool] = lambda ids: False,
    ) -> None:
        self._decode = decode
        self._detokenizer = Detokenizer(decode, ends_within_character)
        self._stop = stop
        self._held = ""

    @property
    def length(self) -> int:
        """Number of characters so far, including those that are held back or cut off."""
        return self._detokenizer.length

    def token_length(self, token_id: int) -> int:
        """Return the number of characters of a token alone, as this stream shows it."""
        return len(self._decode([token_id]))

    def feed(self, token_id: int) -> tuple[str, bool]:
        """Add a token. Return the text that is now visible, and whether a stop string ended the answer."""
        text, stopped = self._cut_at_stop(self._detokenizer.feed(token_id))
        if stopped:
            return text, True
        keep = partial_match_length(text, self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> tuple[str, bool]:
        """Return the text held back at the end of the answer, and whether it completes a stop string."""
        text, stopped = self._cut_at_stop(self._detokenizer.flush())
        self._held = ""
        return text, stopped

    def _cut_at_stop(self, new: str) -> tuple[str, bool]:
        text = self._held + new
        ends = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        return (text[: min(ends)], True) if ends else (text, False)


def partial_match_length(text: str, marks: tuple[str, ...]) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of one of `marks`."""
    longest = max((len(mark) for mark in marks), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-size:]) for mark in marks):
            return size
    return 0
