"""Incremental detokenizer: it returns whole characters only, and no part of a stop string.

An answer that ends within a character ends before it.

Its state depends only on the tokens fed so far, so feeding the logged tokens again restores it.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # a decoder writes it for an incomplete character
WINDOW_TOKENS = 16  # decoded together before the window moves on; bounds the work per token
MAX_WINDOW_TOKENS = 64  # for bytes that never form a character
MAX_CHARACTER_TOKENS = 4  # the bytes of one character, each a token of its own


class TokenTexts(dict[int, str | None]):
    """Texts of tokens that are the same in any context, None for tokens with a part of a character.

    Each is decoded at its first use. For a decoder that joins the bytes of tokens.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode

    def __missing__(self, token_id: int) -> str | None:
        text = self._decode([token_id])
        found = self[token_id] = None if REPLACEMENT in text else text
        return found


class Detokenizer:
    """Incremental detokenizer of one answer.

    Each token decodes a window of the last tokens again, because a character's bytes or a word's leading space may
    depend on the token before. The replacement characters at the end of a window may still change: a decoder writes
    one for an incomplete character, or one for each of its bytes.

    Args:
        decode: returns the text of token ids.
        ends_within_character: returns whether the bytes of token ids end with the beginning of a character.
        texts: of single tokens, if the decoder joins their bytes. The window then has an unfinished character only.

    Attributes:
        length: number of characters returned so far.
    """

    __slots__ = ("_decode", "_emitted", "_ends_within_character", "_texts", "_window", "length")

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        ends_within_character: Callable[[list[int]], bool],
        texts: TokenTexts | None = None,
    ) -> None:
        self.length = 0
        self._texts = texts
        self._decode = decode
        self._ends_within_character = ends_within_character
        self._window: tuple[int, ...] = ()  # nearly always empty: a list of its own would be read for each token
        self._emitted = 0  # characters of the window's text already returned

    def feed_whole(self, token_id: int) -> str | None:
        """Add a token with whole characters, and return its text; None, and nothing is added, for other tokens."""
        if self._window or self._texts is None:
            return None
        text = self._texts[token_id]
        if text is not None:
            self.length += len(text)
        return text

    def feed(self, token_id: int) -> str:
        """Add a token, and return the text that is now final."""
        if (known := self.feed_whole(token_id)) is not None:
            return known
        self._window += (token_id,)
        text = self._decode([*self._window])
        whole = not text.endswith(REPLACEMENT)
        settled = text if whole else text.rstrip(REPLACEMENT)
        new = settled[self._emitted :]
        self._emitted = max(self._emitted, len(settled))
        if whole and self._texts is not None:
            self._window, self._emitted = (), 0
        elif (whole and len(self._window) >= WINDOW_TOKENS) or len(self._window) >= MAX_WINDOW_TOKENS:
            new += text[self._emitted :]
            self._window = self._last_character() if whole else ()
            self._emitted = len(self._decode([*self._window])) if whole else 0
        self.length += len(new)
        return new

    def flush(self) -> str:
        """Return the text held back, without an unfinished character; the answer ends here."""
        text = self._decode([*self._window])
        if text.endswith(REPLACEMENT) and self._ends_within_character([*self._window]):
            text = text.rstrip(REPLACEMENT)
        rest = text[self._emitted :]
        self._emitted += len(rest)
        self.length += len(rest)
        return rest

    def _last_character(self) -> tuple[int, ...]:
        """Return the last tokens of the window that begin where a character does."""
        sizes = range(1, MAX_CHARACTER_TOKENS + 1)
        tails = (self._window[-size:] for size in sizes)
        begun = (tail for tail in tails if not self._decode([*tail]).startswith(REPLACEMENT))
        return next(begun, self._window[-1:])


class TextStream:
    """Detokenizer whose text ends at the first stop string.

    Text is held back only while it may be the beginning of a stop string.

    Args:
        decode: returns the text of token ids.
        stop: the stop strings.
        shows_stop: leave the stop string in the text.
        texts: see `Detokenizer`.

    Attributes:
        unstoppable: the detokenizer, if there are no stop strings, so that its texts are those of this stream.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        stop: tuple[str, ...] = (),
        ends_within_character: Callable[[list[int]], bool] = lambda ids: False,
        *,
        shows_stop: bool = False,
        texts: TokenTexts | None = None,
    ) -> None:
        self._decode = decode
        self._detokenizer = Detokenizer(decode, ends_within_character, texts)
        self._stop = stop
        self._shows_stop = shows_stop
        self._held = ""
        self.unstoppable = None if stop else self._detokenizer

    @property
    def length(self) -> int:
        """Number of characters so far, including those that are held back or cut off."""
        return self._detokenizer.length

    def token_length(self, token_id: int) -> int:
        """Return the number of characters of a token alone, as this stream shows it."""
        return len(self._decode([token_id]))

    def feed(self, token_id: int, *, may_stop: bool = True) -> tuple[str, str | None]:
        """Add a token. Return the text that is now visible, and the stop string that ended the answer, if one did.

        Args:
            may_stop: a stop string that this token completes ends the answer.
        """
        new = self._detokenizer.feed(token_id)
        if not self._stop:
            return new, None
        text, stop = self._cut_at_stop(new, may_stop=may_stop)
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
