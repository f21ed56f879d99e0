"""Driver of a runtime: requests go through the worker's preparation and its engine thread, without a queue."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from shared.errors import HeadraceError
from shared.models.model_store import ModelRepository
from shared.models.startup_progress import StartupProgress
from shared.models.worker_registry import WorkerInfo
from shared.protocol import FinishReason, Request, Token, TokenEvent, Usage
from shared.queue.interface import Claim, Delivery
from shared.settings import Settings
from shared.token_log.interface import Lease
from tests.support.waiting import LIMIT_S
from workers.active_request import ActiveRequest
from workers.engine.interface import EngineOutput, Generator
from workers.engine.stats import EngineStats
from workers.engine_thread import EngineThread
from workers.preparation.preparer import preparer_for
from workers.runtimes.select import load_runtime


@dataclass
class Ended:
    """Answer of a run that has ended. `logged` are the tokens of earlier runs."""

    tokens: list[Token] = field(default_factory=list)
    logged: list[Token] = field(default_factory=list)
    prompt: tuple[Token, ...] = ()
    usage: Usage | None = None
    error: HeadraceError | None = None
    finished: bool = False

    def text(self, choice: int = 0) -> str:
        return "".join(token.text for token in [*self.logged, *self.tokens] if token.choice == choice)

    def finish_reasons(self) -> dict[int, FinishReason]:
        return {token.choice: token.finish_reason for token in self.tokens if token.finish_reason is not None}


class RuntimeDriver:
    """Runs requests on a Generator, which it owns from now on. Methods block at most `limit` seconds."""

    def __init__(self, engine: Generator, settings: Settings, limit: float = LIMIT_S) -> None:
        info = WorkerInfo(
            id="a", pid=1, model="m", state="ready", max_model_len=engine.max_model_len, task=engine.task
        )
        self.engine = engine
        self._limit = limit
        self._preparer = preparer_for(engine, info, settings)
        self._changed = threading.Condition()
        self._runs: dict[str, Ended] = defaultdict(Ended)
        self._epochs = 0
        self.most_running = 0  # as the engine reported after a step
        self.thread = EngineThread(engine, self._take)
        self.thread.start()

    @classmethod
    @contextmanager
    def of(cls, settings: Settings, limit: float = LIMIT_S) -> Iterator[RuntimeDriver]:
        """Load the settings' runtime, and drive it until the body ends."""
        driver = cls(load_runtime(settings, ModelRepository(settings), StartupProgress()), settings, limit)
        try:
            yield driver
        finally:
            driver.stop()

    def stop(self) -> None:
        self.thread.stop()
        self._preparer.close()
        if close := getattr(self.engine, "close", None):
            close()

    def start(self, request: Request, logged: Iterable[Token] = ()) -> str:
        """Start a run of a request whose log has tokens already. Return its id."""
        self._epochs += 1
        history = tuple(TokenEvent(seq, (token,)) for seq, token in enumerate(logged))
        claim = Claim(request.id, request.model, request.priority, "1-1")
        lease = Lease(request.id, "a", self._epochs, 0.0, history)
        active = ActiveRequest(Delivery(request, claim, 1), lease)
        self._runs[active.run_id].logged = list(logged)
        try:
            prepared = asyncio.run(self._preparer.prepare(active))
        except HeadraceError as error:
            prepared = EngineOutput(active.run_id, finished=True, error=error)
        if isinstance(prepared, EngineOutput):
            self._note([prepared])
        else:
            self.thread.add(prepared)
        return active.run_id

    def wait(self, run_id: str, tokens: int | None = None) -> Ended:
        """Wait until a run has ended, or has that many tokens."""
        run = self._runs[run_id]
        with self._changed:
            reached = self._changed.wait_for(
                lambda: run.finished or (tokens is not None and len(run.tokens) >= tokens), self._limit
            )
        assert reached, f"the run has {len(run.tokens)} tokens, and does not go on"
        return run

    def answer(self, request: Request, logged: Iterable[Token] = ()) -> Ended:
        return self.wait(self.start(request, logged))

    def await_idle(self) -> None:
        """Wait until the engine reports that nothing runs or waits."""
        self.await_stats(lambda stats: stats.running == stats.waiting == 0)

    def await_stats(self, reached: Callable[[EngineStats], bool]) -> None:
        """Poll the engine's statistics until they are as expected."""
        deadline = time.monotonic() + self._limit
        while not reached(self.engine.stats()):
            assert time.monotonic() < deadline, self.engine.stats()
            time.sleep(0.005)

    def _take(self) -> None:
        self.most_running = max(self.most_running, self.engine.stats().running)
        self._note(self.thread.take())
        if self.thread.failure is not None:
            raise self.thread.failure

    def _note(self, outputs: list[EngineOutput]) -> None:
        with self._changed:
            for output in outputs:
                run = self._runs[output.job_id]
                assert not run.finished, "an output after the end of a run"
                run.tokens += output.tokens
                run.prompt = run.prompt or output.prompt
                run.finished, run.error, run.usage = output.finished, output.error, output.usage
            self._changed.notify_all()
