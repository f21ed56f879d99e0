"""Incremental parser of server-sent events. Reference: WHATWG HTML, "Server-sent events".

Unlike a browser's, it also returns comments, because a keepalive shows that the server is alive.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import HeadraceError
from shared.numbers import whole

MAX_FRAME_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Frame:
    """One event, with its own id, if any; or one comment."""

    event: str = "message"
    data: str = ""
    id: str | None = None
    comment: str | None = None


class Parser:
    """Parser of one stream. `retry` is the last reconnection time from the server, in seconds."""

    def __init__(self) -> None:
        self.retry: float | None = None
        self._rest = b""
        self._reset()

    def _reset(self) -> None:
        self._event = "message"
        self._id: str | None = None
        self._data: list[str] = []
        self._size = 0  # bytes of the current event

    def feed(self, chunk: bytes) -> list[Frame]:
        """Return the frames that `chunk` completes. Raises HeadraceError if a frame exceeds MAX_FRAME_BYTES."""
        *lines, self._rest = (self._rest + chunk).replace(b"\r\n", b"\n").split(b"\n")
        found = [frame for line in lines if (frame := self._line(line)) is not None]
        if self._size + len(self._rest) > MAX_FRAME_BYTES:
            raise HeadraceError(
                f"the server sent an event of more than {MAX_FRAME_BYTES} bytes; check that url points to Headrace"
            )
        return found

    def _line(self, line: bytes) -> Frame | None:
        """Return the frame that a line completes: a comment, or an event at an empty line."""
        if not line:
            frame = Frame(self._event, "\n".join(self._data), self._id) if self._data else None
            self._reset()
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
        elif name == "retry" and (milliseconds := whole(value)) is not None:
            self.retry = milliseconds / 1000
        return None if name else Frame(comment=value)
