"""Generator whose requests an upstream server executes."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Mapping

import structlog
import uvloop

from shared.errors import ConfigError, InvalidRequest
from shared.models.upstream import UpstreamAddress, UpstreamModel, await_model
from shared.models.worker_registry import Task
from shared.settings import Settings
from workers.engine.interface import EngineOutput, EngineRequest
from workers.engine.stats import EngineStats
from workers.runtimes.upstream.body import BodyWriter
from workers.runtimes.upstream.client import UpstreamClient
from workers.runtimes.upstream.dialects import DIALECTS
from workers.runtimes.upstream.health import Health
from workers.runtimes.upstream.outbox import Outbox
from workers.runtimes.upstream.run import Attempts, Run, Service
from workers.runtimes.upstream.seats import Seats

DEFAULT_CONTEXT_TOKENS = 131_072  # of a server that does not report it

log = structlog.get_logger(__name__)


class UpstreamEngine:
    """Sends each request to the server, in a thread with an event loop. `step` only hands over what has arrived.

    Args:
        model: as the server reports it.
    """

    def __init__(self, settings: Settings, model: UpstreamModel) -> None:
        address = UpstreamAddress.from_settings(settings)
        self.tokenizer = None
        self.constraints = None
        self.task: Task = "generate"
        identity = hashlib.sha256(f"{address.url} {model.name}".encode()).hexdigest()
        self.fingerprint = f"fp_upstream_{identity[:16]}"
        self.computation: Mapping[str, str] = {}
        self.max_model_len = settings.max_model_len or model.max_model_len or DEFAULT_CONTEXT_TOKENS
        self._model = model
        self._dialect = DIALECTS[model.kind]
        self._max_num_seqs = settings.max_num_seqs
        self._runs: dict[str, int] = {}  # sequences by run
        self._tasks: dict[str, asyncio.Task[None]] = {}  # in the loop's thread
        self._wake: Callable[[], None] = lambda: None
        self._loop = uvloop.new_event_loop()
        self._outbox = Outbox(self._loop, self._on_change)
        self._client = UpstreamClient(address)
        self._health = Health(self._client, self._on_change)
        attempts = Attempts(
            settings.upstream_resume, settings.max_attempts, settings.log_tokens, settings.upstream_timeout
        )
        self._service = Service(self._client, self._health, attempts, self._outbox)
        self._seats = Seats(self._max_num_seqs)
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, name="upstream", daemon=True)
        self._thread.start()

    @classmethod
    def connect(cls, settings: Settings) -> UpstreamEngine:
        """Find the model at the server. Raises ConfigError if the server cannot be used as the settings say."""
        model = await_model(settings)
        if settings.upstream_resume == "continue" and not DIALECTS[model.kind].continues:
            raise ConfigError(
                "upstream_resume cannot be continue: this upstream server is not known to continue an answer, as "
                "vLLM, SGLang and llama.cpp do; set it to restart or fail",
                param="upstream_resume",
            )
        log.info("upstream_connected", model=model.name, server=model.kind, max_model_len=model.max_model_len)
        return cls(settings, model)

    def add(self, request: EngineRequest) -> None:
        if request.source is None:
            raise InvalidRequest("the runtime upstream takes requests as they were queued only")
        params = request.source.request.params
        if params.n > self._max_num_seqs:
            raise InvalidRequest(
                f"n must be at most {self._max_num_seqs} on this worker, got {params.n}", param="n"
            )
        if request.id in self._runs:
            raise InvalidRequest(f"run {request.id} is running already")
        writer = BodyWriter(request.source.request, self._model.name, self._dialect)
        run = Run(request, writer, self._service)
        self._runs[request.id] = params.n
        self._loop.call_soon_threadsafe(self._start, run)

    def abort(self, job_id: str) -> bool:
        if self._runs.pop(job_id, None) is None:
            return False
        self._loop.call_soon_threadsafe(self._cancel, job_id)
        return True

    def step(self) -> list[EngineOutput]:
        """Return what has arrived of the requests that have not been aborted."""
        outputs = [output for output in self._outbox.take() if output.job_id in self._runs]
        for output in outputs:
            if output.finished:
                del self._runs[output.job_id]
        return outputs

    def abandon_when(self, urgent: Callable[[], bool]) -> None:
        """Ignore the signal: steps take no time."""

    def wake_with(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def has_work(self) -> bool:
        """Return whether outputs have arrived."""
        return self._outbox.has_outputs

    def stats(self) -> EngineStats:
        running = self._seats.taken
        waiting = max(0, sum(self._runs.values()) - running)
        return EngineStats(running=running, waiting=waiting, fault=self._health.fault)

    def close(self) -> None:
        """End all requests and the thread."""
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    # in the loop's thread

    def _on_change(self) -> None:
        self._wake()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._watch_until_closed())

    async def _watch_until_closed(self) -> None:
        watching = asyncio.create_task(self._health.watch())
        await self._closing.wait()
        tasks = [watching, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()

    def _start(self, run: Run) -> None:
        task = self._tasks[run.id] = self._loop.create_task(self._answer(run))
        task.add_done_callback(lambda _: self._tasks.pop(run.id, None))

    async def _answer(self, run: Run) -> None:
        async with self._seats.taking(run.params.n, run.priority):
            await run.answer()

    def _cancel(self, run_id: str) -> None:
        if (task := self._tasks.get(run_id)) is not None:
            task.cancel()
