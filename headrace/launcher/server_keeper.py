"""Restarts of the embedded Valkey, after growing pauses."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from headrace.launcher.supervisor import Backoff
from shared.errors import Unavailable


class RestartableServer(Protocol):
    """The part of EmbeddedServer that ServerKeeper uses."""

    @property
    def pid(self) -> int | None: ...

    def start(self) -> None: ...


class ServerKeeper:
    """Restarts a server that has died.

    Args:
        report: called with a sentence about each death and each failed start.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        server: RestartableServer,
        report: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._report = report
        self._clock = clock
        self._backoff = Backoff()
        self._started_at = clock()
        self._dead = False

    def check(self) -> None:
        """Check the server once, and restart it if it is dead and its pause is over.

        Raises ConfigError if another server uses its folder.
        """
        if self._server.pid is not None:
            return
        if not self._dead:
            self._dead = True
            pause = self._backoff.died(self._started_at, self._clock())
            self._report(f"the embedded Valkey died, restart in {pause:.1f} s")
        if self._clock() >= self._backoff.due:
            self._restart()

    def _restart(self) -> None:
        try:
            self._server.start()
        except (Unavailable, OSError) as error:  # OSError: too many processes, or no space for its log
            now = self._clock()
            pause = self._backoff.died(now, now)
            reason = error.message if isinstance(error, Unavailable) else error.strerror
            self._report(f"the embedded Valkey cannot be started ({reason}), next attempt in {pause:.1f} s")
        else:
            self._dead = False
            self._started_at = self._clock()
