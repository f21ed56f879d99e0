"""Data of server-sent events, from the bytes of a response. Reference: WHATWG HTML, "Server-sent events"."""

from __future__ import annotations

from workers.runtimes.upstream.failures import Broken

BOM = b"\xef\xbb\xbf"
MAX_EVENT_BYTES = 4 * 2**20  # a first chunk of vLLM may have the ids of a whole prompt


class EventReader:
    """Incremental parser of a stream of events. Fields other than `data` do not matter here."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._begun = False

    def feed(self, part: bytes) -> list[bytes]:
        """Return the data of the events that `part` completes. Raises Broken for an oversized event."""
        if self._is_one_event(part):
            self._begun = True
            return [part[6:-2]]
        self._rest += part
        found = []
        if b"\n" in part:
            *lines, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
            if not self._begun:
                lines[0] = lines[0].removeprefix(BOM)
                self._begun = True
            for line in lines:
                if (data := self._line(line.removesuffix(b"\r"))) is not None:
                    found.append(data)
        if len(self._rest) + self._size > MAX_EVENT_BYTES:
            raise Broken(f"the upstream server sent an event of more than {MAX_EVENT_BYTES} bytes")
        return found

    def end(self) -> list[bytes]:
        """Return the data of a last event that lacks its blank line."""
        return self.feed(b"\n\n")

    def _is_one_event(self, part: bytes) -> bool:
        """Return whether `part` is an event in the usual form, as nearly all parts are; others take longer."""
        return (
            part.startswith(b"data: ")
            and part.find(b"\n") == len(part) - 2
            and part.endswith(b"\n\n")
            and b"\r" not in part
            and not self._rest
            and not self._data
        )

    def _line(self, line: bytes) -> bytes | None:
        if line.startswith(b"data:"):
            value = line[5:].removeprefix(b" ")
            self._data.append(value)
            self._size += len(line)
        elif not line and self._data:
            data = b"\n".join(self._data)
            self._data, self._size = [], 0
            return data
        return None
