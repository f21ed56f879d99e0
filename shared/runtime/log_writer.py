"""A writer of log lines on a thread, so that a slow reader of the log never blocks the process."""

from __future__ import annotations

import atexit
import os
import threading
import time

MAX_WAITING = 10_000  # lines; further ones are dropped
GATHER_S = 0.05  # lines gather before they are written, since waking the thread costs more than a line
EXIT_WAIT_S = 1.0  # that an ending process waits for the last lines


class Lines:
    """Bounded buffer of lines for a file that may block, such as a pipe without a reader.

    Args:
        file: its descriptor. A Python file object would still be locked at exit if the thread blocks in a write.
        most: lines that may wait.

    Attributes:
        dropped: lines that were not written, because too many waited or the file is closed.
    """

    def __init__(self, file: int, *, most: int = MAX_WAITING) -> None:
        self._file = file
        self._most = most
        self._waiting: list[str] = []
        self._writing = False
        self._changed = threading.Condition()
        self.dropped = 0
        threading.Thread(target=self._run, name="log", daemon=True).start()
        atexit.register(self.settle)

    def write(self, line: str) -> None:
        with self._changed:
            if len(self._waiting) >= self._most:
                self.dropped += 1
                return
            self._waiting.append(line)
            if not self._writing and len(self._waiting) == 1:
                self._changed.notify_all()

    def flush(self) -> None:
        """Do nothing: lines are written soon after they arrive."""

    def settle(self, timeout: float = EXIT_WAIT_S) -> None:
        """Wait until all lines are written, at most `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._writing), timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                self._writing = True
            time.sleep(GATHER_S)
            with self._changed:
                lines, self._waiting = self._waiting, []
            try:
                left = "".join(lines).encode(errors="backslashreplace")
                while left:
                    left = left[os.write(self._file, left) :]
            except OSError:  # the reader is gone, or the file is closed
                with self._changed:
                    self.dropped += len(lines)
