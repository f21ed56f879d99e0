"""From token ids to visible text, one token at a time: whole characters only, and nothing of a stop string.

Its state is a function of the tokens fed so far, so feeding the logged tokens again restores it. It knows
nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # how a decoder writes bytes that are no whole character
WINDOW = 16  # tokens decoded together before the window moves on; bounds the work of one token
MAX_WINDOW = 64  # of bytes that never become a character


class Detokenizer:
    """Incremental decoding of one answer.

    A window of the last tokens is decoded at each step, since a character's bytes, or a word's leading space,
    may depend on the token before. Only the last replacement character of a window can still become something
    else.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._emitted = 0  # characters of the window's text that are out

    def feed(self, token_id: int) -> str:
        """The text that this token settles."""
        self._window.append(token_id)
        text = self._decode(self._window)
        whole = not text.endswith(REPLACEMENT)
        settled = text if whole else text[:-1]
        new = settled[self._emitted :]
        self._emitted = max(self._emitted, len(settled))
        if (whole and len(self._window) >= WINDOW) or len(self._window) >= MAX_WINDOW:
            new += text[self._emitted :]
            self._window = [token_id] if whole else []
            self._emitted = len(self._decode(self._window)) if whole else 0
        return new

    def flush(self) -> str:
        """What was held back; the end of the answer."""
        rest = self._decode(self._window)[self._emitted :]
        self._emitted += len(rest)
        return rest


class TextStream:
    """A detokenizer whose text ends before the first stop string.

    Text is held back only while it is the beginning of a stop string.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: tuple[str, ...] = ()) -> None:
        self._detokenizer = Detokenizer(decode)
        self._stop = stop
        self._held = ""

    def feed(self, token_id: int) -> tuple[str, bool]:
        """Visible text that this token adds, and whether a stop string ended the answer."""
        text, stopped = self._cut(self._detokenizer.feed(token_id))
        if stopped:
            return text, True
        keep = partial_match(text, self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> tuple[str, bool]:
        """As `feed`, for the end of the answer: nothing is held back any more."""
        text, stopped = self._cut(self._detokenizer.flush())
        self._held = ""
        return text, stopped

    def _cut(self, new: str) -> tuple[str, bool]:
        text = self._held + new
        ends = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        return (text[: min(ends)], True) if ends else (text, False)


def partial_match(text: str, marks: tuple[str, ...]) -> int:
    """Length of the longest end of `text` with which one of `marks` begins."""
    longest = max((len(mark) for mark in marks), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-size:]) for mark in marks):
            return size
    return 0
