"""Watchdog of a worker: it runs in the event loop, which still runs when the engine's thread hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from workers.engine_thread import EngineThread
from workers.health.cpu_time import engine_cpu_time
from workers.health.notifier import Notifier
from workers.health.step_watch import INTERVAL_S, StepWatch

log = structlog.get_logger(__name__)


class EngineHung(Exception):
    """The engine no longer computes, and its thread cannot be stopped: the process must end."""


class Watchdog:
    """Observes the engine, and tells the supervisor that this process responds.

    Args:
        step_timeout: see StepWatch; 0 turns the watchdog off.
    """

    def __init__(self, engine: EngineThread, step_timeout: float, notifier: Notifier) -> None:
        self._engine = engine
        self._watch = StepWatch(step_timeout) if step_timeout else None
        self._notifier = notifier

    async def run(self) -> None:
        """Observe the engine, whose thread has been started, until cancelled. Raises EngineHung."""
        assert self._engine.ident is not None
        cpu_time = engine_cpu_time(self._engine.ident)
        self._notifier.ready()
        try:
            while True:
                self._notifier.alive()
                if self._watch is not None:
                    self._observe(self._watch, cpu_time)
                await asyncio.sleep(self._watch.interval if self._watch else INTERVAL_S)
        except asyncio.CancelledError:
            self._notifier.stopping()
            raise

    def _observe(self, watch: StepWatch, cpu_time: Callable[[], float]) -> None:
        hang = watch.observe(self._engine.step, time.monotonic(), cpu_time)
        if hang is None:
            return
        self._engine.abandon()
        log.error("engine_hung", kind=hang.kind, seconds=round(hang.seconds, 1), stack=self._engine.stack())
        raise EngineHung(f"the engine's step has been {hang.kind} for {hang.seconds:.1f} s")
