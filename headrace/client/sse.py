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

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that `chunk` completes. Raises HeadraceError for one that does not end."""
        *whole, self._rest = (self._rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        if len(self._rest) > MOST_FRAME:
            raise HeadraceError("the server sent an event without an end: no Headrace?")
        return [frame for block in whole if (frame := self._frame(block.decode(errors="replace"))) is not None]

    def _frame(self, block: str) -> Frame | None:
        event, data, found_id, comment = "message", [], None, None
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name == "event":
                event = value
            elif name == "id":
                found_id = value
            elif name == "retry" and value.isdecimal():
                self.retry = int(value) / 1000
            elif line.startswith(":"):
                comment = value
        if data:
            return Frame(event, "\n".join(data), found_id)
        return None if comment is None else Frame(comment=comment)
