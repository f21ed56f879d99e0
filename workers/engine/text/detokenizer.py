"""Incremental detokenizer: it returns whole characters only, and no part of a stop string.

Its state depends only on the tokens fed so far, so feeding the logged tokens again restores it.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # a decoder writes it for an incomplete character
WINDOW_TOKENS = 16  # decoded together before the window moves on; bounds the work per token
MAX_WINDOW_TOKENS = 64  # for bytes that never form a character


class Detokenizer:
    """Incremental detokenizer of one answer.

    Each token decodes a window of the last tokens again, because a character's bytes or a word's leading space may
    depend on the token before. Only the last replacement character of a window may still change.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._emitted = 0  # characters of the window's text already returned

    def feed(self, token_id: int) -> str:
        """Add a token, and return the text that is now final."""
        self._window.append(token_id)
        text = self._decode(self._window)
        whole = not text.endswith(REPLACEMENT)
        settled = text if whole else text[:-1]
        new = settled[self._emitted :]
        self._emitted = max(self._emitted, len(settled))
        if (whole and len(self._window) >= WINDOW_TOKENS) or len(self._window) >= MAX_WINDOW_TOKENS:
            new += text[self._emitted :]
            self._window = [token_id] if whole else []
            self._emitted = len(self._decode(self._window)) if whole else 0
        return new

    def flush(self) -> str:
        """Return the text held back; the answer ends here."""
        rest = self._decode(self._window)[self._emitted :]
        self._emitted += len(rest)
        return rest


class TextStream:
    """Detokenizer whose text ends at the first stop string.

    Text is held back only while it may be the beginning of a stop string.

    Args:
        decode: returns the text of token ids.
        stop: the stop strings.
        shows_stop: leave the stop string in the text.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], stop: tuple[str, ...] = (), *, shows_stop: bool = False
    ) -> None:
        self._detokenizer = Detokenizer(decode)
        self._stop = stop
        self._shows_stop = shows_stop
        self._held = ""

    def feed(self, token_id: int, *, may_stop: bool = True) -> tuple[str, str | None]:
        """Add a token. Return the text that is now visible, and the stop string that ended the answer, if one did.

        Args:
            may_stop: a stop string that this token completes ends the answer.
        """
        text, stop = self._cut_at_stop(self._detokenizer.feed(token_id), may_stop=may_stop)
        keep = 0 if stop is not None else partial_match_length(text, self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], stop

    def flush(self, *, may_stop: bool = True) -> tuple[str, str | None]:
        """Return the text held back at the end of the answer, and the stop string that it completes, if any."""
        text, stop = self._cut_at_stop(self._detokenizer.flush(), may_stop=may_stop)
        self._held = ""
        return text, stop

    def end_at(self, token_id: int, *, shown: bool) -> str:
        """Return the rest of the text when a token ends the answer, with the token's own text if it is `shown`."""
        text, stop = self.feed(token_id) if shown else ("", None)
        return text if stop is not None else text + self.flush()[0]

    def _cut_at_stop(self, new: str, *, may_stop: bool) -> tuple[str, str | None]:
        text, held = self._held + new, len(self._held)
        if not may_stop:
            return text, None
        # a stop string within the held text was completed when it could not stop
        places = [(text.find(stop, max(0, held - len(stop) + 1)), stop) for stop in self._stop]
        at, stop = min(((at, stop) for at, stop in places if at >= 0), key=itemgetter(0), default=(-1, None))
        if stop is None:
            return text, None
        return text[: at + len(stop) if self._shows_stop else at], stop


def partial_match_length(text: str, marks: tuple[str, ...]) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of one of `marks`."""
    longest = max((len(mark) for mark in marks), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-size:]) for mark in marks):
            return size
    return 0
