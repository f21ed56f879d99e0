"""Reads the tool calls out of a choice's text as it comes, for the form in which its model writes them.

A grammar holds the text to that form. The state is a function of the text so far, so that reading it again restores
it. It knows nothing of tokens.
"""

from __future__ import annotations

from enum import Enum, auto

from shared.protocol import CallDelta
from workers.engine.text.detokenizer import partial_match
from workers.engine.text.tool_format import ToolFormat


class _Place(Enum):
    START = auto()
    SAID = auto()
    TEXT = auto()
    NAME = auto()
    ARGUMENTS = auto()
    AFTER = auto()
    LIST = auto()


class CallReader:
    """Of one choice.

    Args:
        first: what an answer begins with that calls; any other is text to its end. Where it is empty, calls may
            stand anywhere.

    Attributes:
        called: it has made a whole call.
    """

    def __init__(self, form: ToolFormat, first: tuple[str, ...] = ()) -> None:
        self._form = form
        self._first = first
        self._place = _Place.START if first else _Place.TEXT
        self._held = ""
        self._index = -1
        self._depth = 0
        self._quoted = self._escaped = False
        self.called = False

    def feed(self, text: str, *, last: bool) -> tuple[str, tuple[CallDelta, ...]]:
        """What this text adds: to what is said, and to calls. Space around calls is not told; `last` ends it."""
        self._held += text
        said, deltas = "", []
        while (found := self._advance(last)) is not None:
            if isinstance(found, CallDelta):
                deltas.append(found)
            else:
                said += found
        return said, tuple(deltas)

    def _advance(self, last: bool) -> str | CallDelta | None:
        """The next thing in what is held; None where more text is needed."""
        match self._place:
            case _Place.START:
                return self._start(last)
            case _Place.SAID:
                found, self._held = self._held or None, ""
            case _Place.TEXT:
                return self._text(last)
            case _Place.NAME:
                return self._name()
            case _Place.ARGUMENTS:
                return self._arguments()
            case _Place.AFTER:
                found = self._skip(self._form.after, _Place.LIST if self._form.opening else _Place.TEXT)
            case _Place.LIST if self._held.startswith(self._form.closing):
                found = self._skip(self._form.closing, _Place.TEXT)
            case _Place.LIST:
                found = self._skip(self._form.separator + self._form.before, _Place.NAME)
        return found

    def _start(self, last: bool) -> str | None:
        if any(self._held.startswith(mark) for mark in self._first):
            self._place = _Place.TEXT
        elif last or not any(mark.startswith(self._held) for mark in self._first):
            self._place = _Place.SAID
        else:
            return None
        return ""

    def _text(self, last: bool) -> str | None:
        mark = self._form.opening + self._form.before
        at = self._held.find(mark)
        if at >= 0:
            said, self._held = self._held[:at], self._held[at + len(mark) :]
            self._place = _Place.NAME
            return said.rstrip()
        keep = 0 if last else partial_match(self._held, (mark,))
        said = self._held[: len(self._held) - keep]
        trailing = len(said) - len(said.rstrip())
        if trailing and (self.called or not last):  # a call may follow, or has come before
            keep, said = keep + trailing, said.rstrip()
        if not said:
            return None
        self._held = self._held[len(self._held) - keep :] if keep else ""
        return said

    def _name(self) -> CallDelta | None:
        name, found, rest = self._held.partition(self._form.middle)
        if not found:
            return None
        self._held, self._place = rest, _Place.ARGUMENTS
        self._index += 1
        return CallDelta(self._index, name)

    def _arguments(self) -> CallDelta | None:
        """As far as they go: to the bracket that closes the first."""
        if not self._held:
            return None
        end = len(self._held)
        for at, character in enumerate(self._held):
            if self._closes(character):
                end, self._place, self.called = at + 1, _Place.AFTER, True
                break
        piece, self._held = self._held[:end], self._held[end:]
        return CallDelta(self._index, arguments=piece)

    def _closes(self, character: str) -> bool:
        if self._quoted:
            self._quoted = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
        elif character == '"':
            self._quoted = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return self._depth == 0
        return False

    def _skip(self, mark: str, then: _Place) -> str | None:
        if len(self._held) < len(mark):
            return None
        self._held, self._place = self._held[len(mark) :], then
        return ""
