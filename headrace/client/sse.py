"""Parses server-sent events out of bytes as they come. Reference: WHATWG HTML, "Server-sent events".

Unlike a browser it also tells comments: a keepalive is a sign of life.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import HeadraceError

MOST_FRAME = 64 * 2**20  # bytes of one frame


@dataclass(frozen=True)
class Frame:
    """One event, with the id that it carried itself, if any; or a comment."""

    event: str = "message"
    data: str = ""
    id: str | None = None
    comment: str | None = None


class Parser:
    """Frames of one stream; `retry` is what the server last said, in seconds."""

    def __init__(self) -> None:
        self.retry: float | None = None
        self._rest = b""
        self._begin()

    def _begin(self) -> None:
        self._event = "message"
        self._id: str | None = None
        self._data: list[str] = []
        self._size = 0  # bytes of the event that has begun

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that `chunk` completes. Raises HeadraceError for one that does not end."""
        *lines, self._rest = (self._rest + chunk).replace(b"\r\n", b"\n").split(b"\n")
        found = [frame for line in lines if (frame := self._line(line)) is not None]
        if self._size + len(self._rest) > MOST_FRAME:
            raise HeadraceError("the server sent an event without an end: no Headrace?")
        return found

    def _line(self, line: bytes) -> Frame | None:
        """The comment that it is, or the event that it ends."""
        if not line:
            frame = Frame(self._event, "\n".join(self._data), self._id) if self._data else None
            self._begin()
            return frame
        self._size += len(line)
        name, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id":
            self._id = value
        elif name == "retry" and value.isdecimal():
            self.retry = int(value) / 1000
        return None if name else Frame(comment=value)
