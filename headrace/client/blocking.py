"""Blocking client: runs the flows with httpx and time.sleep."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from headrace.client.httpx_config import LIMITS, TIMEOUT, TRANSPORT_ERRORS, credentials, request_of, unavailable
from headrace.client.operations import Operations
from headrace.client.sans_io import Clock, Command, Emit, Flow, Pause, Read, Replicas, Reply, Run, Send
from headrace.client.stream_readers import Body, ChatStreamReader, JobEvent, Json, chunk_text

Result = TypeVar("Result")


class HeadraceClient:
    """Client of one API or of several replicas of it; a context manager, and safe to share among threads.

    Every call may raise the HeadraceError that the server reports, or Unavailable if no replica answers in time.
    Closing a `chat` before its end cancels its request.

    Args:
        base_url: one address, or those of several replicas; when one fails, the next is used.
        api_key: sent with every call; default: the value of HEADRACE_API_KEY, if set.
        patience: for how many seconds a call, or a stream without progress, is retried.
    """

    def __init__(
        self, base_url: str | Sequence[str], *, api_key: str | None = None, patience: float = 60.0
    ) -> None:
        urls = [base_url] if isinstance(base_url, str) else base_url
        self._operations = Operations(Replicas(urls), patience, Clock())
        self._http = httpx.Client(timeout=TIMEOUT, limits=LIMITS, headers=credentials(api_key))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(self, body: Body, *, key: str | None = None) -> Json:
        """Submit a job and return it. It is queued once, however often it is sent.

        `key` is an idempotency key of the caller, for retries by the caller.
        """
        return self._run(self._operations.submit(body, key))

    def job(self, job_id: str) -> Json:
        """Return a job in its current state."""
        return self._run(self._operations.job(job_id))

    def result(self, job_id: str) -> Json:
        """Wait until the job has ended (completed, failed or cancelled), and return it."""
        return self._run(self._operations.result(job_id))

    def timeline(self, job_id: str) -> Json:
        """Return where the time of a job went, up to now if it is unfinished."""
        return self._run(self._operations.timeline(job_id))

    def cancel(self, job_id: str) -> Json:
        """Cancel a job and return it."""
        return self._run(self._operations.cancel(job_id))

    def recording(self, job_id: str) -> Json:
        """Return the request of a completed job with its answer, token by token."""
        return self._run(self._operations.recording(job_id))

    def run_recording(self, recording: Body, *, key: str | None = None) -> Json:
        """Run a recorded request again, and return the new job."""
        return self._run(self._operations.run_recording(recording, key))

    def models(self) -> list[Json]:
        """Return the models that are served."""
        return self._run(self._operations.models())

    def set_asleep(self, model: str, *, asleep: bool) -> Json:
        """Put a model to sleep, or wake it. `url` must be that of the admin port."""
        return self._run(self._operations.set_asleep(model, asleep))

    def administer(self, method: str, path: str, body: Body | None = None) -> Json:
        """Call a route of the admin port; return its JSON, {} for none. `url` must be that of the admin port."""
        return self._run(self._operations.administer(method, path, body))

    def ready(self) -> Json:
        """Return the body of /ready, whether ready or not. This call is not retried."""
        return self._run(self._operations.ready())

    def events(self, job_id: str, after: int = -1) -> Iterator[JobEvent]:
        """Return each event after seq `after` once, across lost connections; the last one is the end."""
        return self._items(Run(self._operations.events(job_id, after)))

    def stream(self, body: Body, *, key: str | None = None) -> Iterator[JobEvent]:
        """Submit a job and return its events."""
        return self._items(Run(self._operations.stream(body, key)))

    def chat(self, body: Body, *, key: str | None = None) -> Generator[Json]:
        """Yield the chunks of one chat completion, across lost connections."""
        reader = ChatStreamReader()
        run = Run(self._operations.chat(body, key, reader))
        try:
            yield from self._items(run)
        finally:
            if not run.ended:
                self._run(self._operations.abandon(reader))

    def complete(self, body: Body, *, key: str | None = None) -> Json:
        """Return one whole chat completion, across lost connections.

        If the call is abandoned, the request continues, and the same `key` returns its answer.
        """
        return self._run(self._operations.complete(body, key))

    def chat_text(self, body: Body, *, key: str | None = None) -> Generator[str]:
        """Yield the text of one chat completion, piece by piece."""
        with closing(self.chat(body, key=key)) as chunks:
            yield from filter(None, map(chunk_text, chunks))

    def dead_letters(self, *, limit: int = 100, after: str | None = None) -> list[Json]:
        """Return dead letters, newest first; with `after`, those older than that letter."""
        return self._run(self._operations.dead_letters(limit, after))

    def dead_letter(self, letter_id: str) -> Json:
        """Return one dead letter, with its request."""
        return self._run(self._operations.dead_letter(letter_id))

    def replay_dead_letter(self, letter_id: str, *, key: str | None = None) -> Json:
        """Queue the request of a dead letter again, and return the new job."""
        return self._run(self._operations.replay(letter_id, key))

    def remove_dead_letter(self, letter_id: str) -> None:
        """Delete one dead letter."""
        self._run(self._operations.remove(letter_id))

    def purge_dead_letters(self) -> int:
        """Delete all dead letters, and return how many there were."""
        return self._run(self._operations.purge())

    def _run(self, flow: Flow[Result]) -> Result:
        run = Run(flow)
        for _ in self._items(run):
            pass
        result: Result = run.result
        return result

    def _items(self, run: Run[Any]) -> Generator[Any]:
        with closing(Exchange(self._http)) as exchange:
            while (command := run.next()) is not None:
                if isinstance(command, Emit):
                    yield command.item
                    continue
                try:
                    run.response = exchange.run(command)
                except TRANSPORT_ERRORS as error:
                    run.failure = unavailable(error)


class Exchange:
    """HTTP exchange of a flow; one at a time."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._response: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())

    def run(self, command: Command) -> Reply | bytes | None:
        """Run one command of a flow. Raises TRANSPORT_ERRORS."""
        match command:
            case Send():
                return self._send(command)
            case Read():
                return next(self._chunks, b"")
            case Pause(seconds):
                time.sleep(seconds)
        return None

    def _send(self, command: Send) -> Reply:
        self.close()
        request = request_of(self._http, command)
        self._response = response = self._http.send(request, stream=True)
        if command.stream and response.is_success:
            self._chunks = response.iter_bytes()
            return Reply(response.status_code, response.headers)
        content = response.read()
        return Reply(response.status_code, response.headers, content)

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
