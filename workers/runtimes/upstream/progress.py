"""Written part of an answer, and the new part of an answer that is repeated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from shared.errors import UpstreamFailed
from shared.protocol import CallDelta, Token
from workers.runtimes.upstream.chunks import UNKNOWN_ID


@dataclass
class Written:
    """Logged part of one choice.

    Attributes:
        entries: number of its tokens in the log.
        parts, thoughts: of the text, and of the reasoning.
        ids: the token ids of all entries; None if one is unknown.
        scores: number of its entries that have an id or log-probabilities.
        calls: name and arguments of each tool call.
    """

    entries: int = 0
    parts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[int] | None = field(default_factory=list)
    scores: int = 0
    finished: bool = False

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def reasoning(self) -> str:
        return "".join(self.thoughts)

    def add(self, token: Token) -> None:
        self.entries += 1
        self.parts.append(token.text)
        self.thoughts.append(token.reasoning)
        self.scores += _is_named(token)
        self.finished |= token.finish_reason is not None
        for call in token.calls:
            if call.name:
                self.calls.append((call.name, call.arguments))
            else:
                name, arguments = self.calls[call.index]
                self.calls[call.index] = (name, arguments + call.arguments)
        if token.id < 0:
            self.ids = None
        elif self.ids is not None:
            self.ids.append(token.id)


class Progress:
    """Written part of an answer with `n` choices, by earlier runs and by this one."""

    def __init__(self, n: int, logged: Iterable[Token]) -> None:
        self.choices = [Written() for _ in range(n)]
        self.entries = 0
        self._unfinished = n
        self.add(logged)

    def add(self, tokens: Iterable[Token]) -> None:
        for token in tokens:
            choice = self.choices[token.choice]
            self.entries += 1
            self._unfinished -= token.finish_reason is not None and not choice.finished
            choice.add(token)

    @property
    def begun(self) -> bool:
        return self.entries > 0

    def is_complete(self) -> bool:
        return self._unfinished == 0


class Repetition:
    """Filter of a repeated answer: drops its beginning, which must be what is written, and returns what follows.

    Parts of a choice that had ended are dropped without comparison.
    """

    def __init__(self, progress: Progress) -> None:
        self._choices = [_Rest(choice) for choice in progress.choices]

    def new(self, tokens: Iterable[Token]) -> list[Token]:
        """Return what the tokens add to what is written. Raises UpstreamFailed where they differ from it."""
        found = (self._choices[token.choice].cut(token) for token in tokens)
        return [token for token in found if token is not None]


class _Rest:
    """Part of one choice that its repetition still has to repeat."""

    def __init__(self, written: Written) -> None:
        self._ended = written.finished
        self._text = _Tail(written.text)
        self._reasoning = _Tail(written.reasoning)
        self._calls = [(_Tail(name), _Tail(arguments)) for name, arguments in written.calls]
        self._scores = written.scores

    def cut(self, token: Token) -> Token | None:
        """Return the token without what it repeats, None if nothing is left."""
        if self._ended:
            return None
        text, reasoning = self._text.cut(token.text), self._reasoning.cut(token.reasoning)
        calls = tuple(rest for call in token.calls if (rest := self._cut_call(call)) is not None)
        named = _is_named(token)
        if named and self._scores:
            self._scores -= 1
            token, named = msgspec.structs.replace(token, id=UNKNOWN_ID, logprobs=None), False
        if token.finish_reason and not self._repeated:
            raise _differs()
        if not (text or reasoning or calls or named or token.finish_reason):
            return None
        return msgspec.structs.replace(token, text=text, reasoning=reasoning, calls=calls)

    @property
    def _repeated(self) -> bool:
        tails = (self._text, self._reasoning, *(tail for call in self._calls for tail in call))
        return all(tail.empty for tail in tails)

    def _cut_call(self, call: CallDelta) -> CallDelta | None:
        if call.index >= len(self._calls):
            return call
        name, arguments = self._calls[call.index]
        if name.cut(call.name):
            raise _differs()
        rest = arguments.cut(call.arguments)
        return CallDelta(call.index, "", rest) if rest else None


class _Tail:
    """Rest of a text that is repeated in parts."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    @property
    def empty(self) -> bool:
        return self._at == len(self._text)

    def cut(self, part: str) -> str:
        """Return what `part` adds after the text. Raises UpstreamFailed if it differs from the text."""
        left = len(self._text) - self._at
        if not left:
            return part
        if part[:left] != self._text[self._at : self._at + len(part)]:
            raise _differs()
        self._at += min(left, len(part))
        return part[left:]


def _is_named(token: Token) -> bool:
    return token.id >= 0 or token.logprobs is not None


def _differs() -> UpstreamFailed:
    return UpstreamFailed("the upstream server's answer was lost, and its new answer begins with another text")
