"""Progress of a worker's start, and the time that each of its phases takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, ParamSpec, TypeVar, get_args

# model: until its folder is complete, with download and convert, or with the wait for a process that does these
Phase = Literal["imports", "model", "download", "convert", "kernels", "weights", "kv_cache", "warmup"]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
PHASES: tuple[Phase, ...] = get_args(Phase)


class StartupProgress:
    """Share of the model that is loaded, and the seconds of each phase; any thread may report to it.

    Phases may overlap, so their sum is not the time to ready. Called with a share, it records that.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self.share = 0.0
        self.seconds: dict[Phase, float] = {}

    def __call__(self, share: float) -> None:
        """Record the share that is loaded, from 0 to 1."""
        self.share = share

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Add the time that the body takes to a phase."""
        began = self._clock()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._clock() - began

    def timed(self, name: Phase, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """Return `function` as a part of a phase."""

        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            with self.phase(name):
                return function(*args, **kwargs)

        return call

    def total(self) -> float:
        """Return the seconds since the start."""
        return self._clock() - self._began
