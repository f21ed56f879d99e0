"""Outputs of all versions of a model, until the worker takes them."""

from __future__ import annotations

import threading
from collections.abc import Callable

from workers.engine.interface import EngineOutput

MAX_BUFFERED_CHARS = 4 * 2**20  # of the responses of decoupled models, which wait while there are more


class Outbox:
    """Outputs in order. The threads of instances put them, the engine's thread takes them."""

    def __init__(self) -> None:
        self._room = threading.Condition()
        self._outputs: list[EngineOutput] = []
        self._chars = 0
        self._closed = False
        self._wake: Callable[[], None] = lambda: None

    @property
    def has_outputs(self) -> bool:
        return bool(self._outputs)

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Call `wake` when the first output arrives."""
        self._wake = wake

    def put(self, output: EngineOutput) -> None:
        """Add an output. One with a response waits for room first."""
        size = sum(len(token.text) for token in output.tokens)
        with self._room:
            while size and self._chars >= MAX_BUFFERED_CHARS and not self._closed:
                self._room.wait()
            first = not self._outputs
            self._outputs.append(output)
            self._chars += size
        if first:
            self._wake()

    def take(self) -> list[EngineOutput]:
        """Return all outputs, in order."""
        with self._room:
            outputs, self._outputs, self._chars = self._outputs, [], 0
            self._room.notify_all()
        return outputs

    def close(self) -> None:
        """Let no output wait any longer."""
        with self._room:
            self._closed = True
            self._room.notify_all()
