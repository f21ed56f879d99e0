"""Incremental parser of the tool calls in a choice's text.

A grammar constrains the text to the model's format. The state depends only on the text so far, so parsing it again
restores the state.
"""

from __future__ import annotations

from enum import Enum, auto

from shared.protocol import CallDelta
from workers.engine.text.detokenizer import partial_match_length
from workers.engine.text.tool_format import ToolFormat


class _State(Enum):
    """Part of the answer that comes next."""

    START = auto()
    TEXT_ONLY = auto()
    TEXT = auto()
    NAME = auto()
    ARGUMENTS = auto()
    AFTER = auto()
    LIST = auto()


class ToolCallParser:
    """Tool call parser of one choice; see `ToolParser`.

    Args:
        openings: beginnings of an answer that consists of calls; an answer with another beginning is text to its
            end. If empty, calls may occur anywhere.

    Attributes:
        has_call: True once a call is complete.
    """

    def __init__(self, tool_format: ToolFormat, openings: tuple[str, ...] = ()) -> None:
        self._format = tool_format
        self._openings = openings
        self._state = _State.START if openings else _State.TEXT
        self._buffer = ""
        self._index = -1
        self._depth = 0
        self._quoted = self._escaped = self._cut = False
        self.has_call = False

    def feed(self, text: str, *, last: bool, cut: bool = False) -> tuple[str, tuple[CallDelta, ...]]:
        """Parse more text. Return the text outside of calls, without space around them, and the additions to calls.

        Args:
            last: the text ends here.
            cut: the model did not end it, so what may be the beginning of a call's markup is not text.
        """
        self._buffer += text
        self._cut = cut
        outside, deltas = "", []
        while (found := self._advance(last)) is not None:
            if isinstance(found, CallDelta):
                deltas.append(found)
            else:
                outside += found
        return outside, tuple(deltas)

    def _advance(self, last: bool) -> str | CallDelta | None:
        """Return the next piece of the buffer; None if more text is needed."""
        match self._state:
            case _State.START:
                return self._start(last)
            case _State.TEXT_ONLY:
                found, self._buffer = self._buffer or None, ""
            case _State.TEXT:
                return self._text(last)
            case _State.NAME:
                return self._name()
            case _State.ARGUMENTS:
                return self._arguments()
            case _State.AFTER:
                found = self._skip(self._format.after, _State.LIST if self._format.opening else _State.TEXT)
            case _State.LIST if self._buffer.startswith(self._format.closing):
                found = self._skip(self._format.closing, _State.TEXT)
            case _State.LIST:
                found = self._skip(self._format.separator + self._format.before, _State.NAME)
        return found

    def _start(self, last: bool) -> str | None:
        if any(self._buffer.startswith(mark) for mark in self._openings):
            self._state = _State.TEXT
        elif any(mark.startswith(self._buffer) for mark in self._openings) and (self._cut or not last):
            return None
        else:
            self._state = _State.TEXT_ONLY
        return ""

    def _text(self, last: bool) -> str | None:
        mark = self._format.opening + self._format.before
        at = self._buffer.find(mark)
        if at >= 0:
            outside, self._buffer = self._buffer[:at], self._buffer[at + len(mark) :]
            self._state = _State.NAME
            return outside.rstrip()
        keep = partial_match_length(self._buffer, (mark,)) if self._cut or not last else 0
        outside = self._buffer[: len(self._buffer) - keep]
        trailing = len(outside) - len(outside.rstrip())
        if trailing and (self.has_call or not last):  # a call may follow, or has come before
            keep, outside = keep + trailing, outside.rstrip()
        if not outside:
            return None
        self._buffer = self._buffer[len(self._buffer) - keep :] if keep else ""
        return outside

    def _name(self) -> CallDelta | None:
        name, found, rest = self._buffer.partition(self._format.middle)
        if not found:
            return None
        self._buffer, self._state = rest, _State.ARGUMENTS
        self._index += 1
        return CallDelta(self._index, name)

    def _arguments(self) -> CallDelta | None:
        """Return more of the arguments, up to the bracket that closes them."""
        if not self._buffer:
            return None
        end = len(self._buffer)
        for at, character in enumerate(self._buffer):
            if self._closes(character):
                end, self._state, self.has_call = at + 1, _State.AFTER, True
                break
        piece, self._buffer = self._buffer[:end], self._buffer[end:]
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

    def _skip(self, mark: str, then: _State) -> str | None:
        if len(self._buffer) < len(mark):
            return None
        self._buffer, self._state = self._buffer[len(mark) :], then
        return ""
