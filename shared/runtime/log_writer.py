"""A log's way out: lines are written by a thread, so that nobody waits for whoever should read them.

It knows nothing of what the lines say.
"""

from __future__ import annotations

import atexit
import os
import threading
import time

MOST = 10_000  # lines that wait to be written; what comes then is dropped
GATHER = 0.05  # seconds for which lines gather before they are written: waking the thread costs more than a line
FAREWELL = 1.0  # seconds that a process's end waits for the last of them


class Lines:
    """Takes lines for a file that may stand still, as a pipe does that nobody reads.

    Args:
        file: its descriptor; Python's own file over it would be locked where the thread stands still at the end.
        most: lines that may wait.

    Attributes:
        dropped: lines that were not written, since too many waited or the file is closed.
    """

    def __init__(self, file: int, *, most: int = MOST) -> None:
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
        """Nothing is held back."""

    def settle(self, timeout: float = FAREWELL) -> None:
        """Wait until all is written, `timeout` seconds at most."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._writing), timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                self._writing = True
            time.sleep(GATHER)
            with self._changed:
                lines, self._waiting = self._waiting, []
            try:
                left = "".join(lines).encode(errors="backslashreplace")
                while left:
                    left = left[os.write(self._file, left) :]
            except OSError:  # its reader has gone, or it is closed
                with self._changed:
                    self.dropped += len(lines)
