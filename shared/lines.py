"""A log's way out: lines are written by a thread, so that nobody waits for whoever should read them.

It knows nothing of what the lines say.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading

MOST = 10_000  # lines that wait to be written; what comes then is dropped
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
        self._waiting: queue.Queue[str] = queue.Queue(most)
        self._lock = threading.Lock()
        self.dropped = 0
        threading.Thread(target=self._run, name="log", daemon=True).start()
        atexit.register(self.settle)

    def write(self, line: str) -> None:
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self._drop()

    def flush(self) -> None:
        """Nothing is held back."""

    def settle(self, timeout: float = FAREWELL) -> None:
        """Wait until all is written, `timeout` seconds at most."""
        with self._waiting.all_tasks_done:
            self._waiting.all_tasks_done.wait_for(lambda: not self._waiting.unfinished_tasks, timeout)

    def _run(self) -> None:
        while True:
            line = self._waiting.get()
            try:
                left = line.encode(errors="backslashreplace")
                while left:
                    left = left[os.write(self._file, left) :]
            except OSError:  # its reader has gone, or it is closed
                self._drop()
            self._waiting.task_done()

    def _drop(self) -> None:
        with self._lock:
            self.dropped += 1
