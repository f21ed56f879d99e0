"""The blocking client: runs the flows with httpx and the thread's own sleep."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from headrace.client.httpx_config import LIMITS, TIMEOUT, TROUBLE, credentials, lost
from headrace.client.operations import Body, Calls, ChatReader, JobEvent, Json, text_of
from headrace.client.sans_io import Clock, Command, Emit, Flow, Pause, Read, Replicas, Reply, Run, Send

Result = TypeVar("Result")


class HeadraceClient:
    """Talks to one API, or to several replicas of it; a context manager, and safe to share among threads.

    Every call may raise HeadraceError, as the server named it, or Unavailable where no replica answers in time.
    Closing a `chat` before its end cancels its request.

    Args:
        base_url: one address, or those of several replicas: the next one is asked when one fails.
        api_key: sent with every call; default: that of HEADRACE_API_KEY, if there is one.
        patience: seconds that a call, or a stream that gives nothing new, goes on trying.
    """

    def __init__(
        self, base_url: str | Sequence[str], *, api_key: str | None = None, patience: float = 60.0
    ) -> None:
        urls = [base_url] if isinstance(base_url, str) else base_url
        self._calls = Calls(Replicas(urls), patience, Clock())
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
        """The job, queued once however often it is sent. `key`: one of yours, for retries of your own."""
        return self._run(self._calls.submit(body, key))

    def job(self, job_id: str) -> Json:
        return self._run(self._calls.job(job_id))

    def result(self, job_id: str) -> Json:
        """The job, once it has ended: completed, failed or cancelled."""
        return self._run(self._calls.result(job_id))

    def cancel(self, job_id: str) -> Json:
        return self._run(self._calls.cancel(job_id))

    def models(self) -> list[Json]:
        return self._run(self._calls.models())

    def ready(self) -> Json:
        """What /ready says, ready or not; asked once."""
        return self._run(self._calls.ready())

    def events(self, job_id: str, after: int = -1) -> Iterator[JobEvent]:
        """Each event after seq `after`, once, through lost connections; the last one tells the end."""
        return self._items(Run(self._calls.events(job_id, after)))

    def stream(self, body: Body, *, key: str | None = None) -> Iterator[JobEvent]:
        """Submit a job and follow its events."""
        return self._items(Run(self._calls.stream(body, key)))

    def chat(self, body: Body, *, key: str | None = None) -> Generator[Json]:
        """The chunks of one chat completion, through lost connections."""
        reader = ChatReader()
        run = Run(self._calls.chat(body, key, reader))
        try:
            yield from self._items(run)
        finally:
            if not run.ended:
                self._run(self._calls.abandon(reader))

    def complete(self, body: Body, *, key: str | None = None) -> Json:
        """One chat completion, whole, through lost connections. Left early it goes on, for whoever has its key."""
        return self._run(self._calls.complete(body, key))

    def chat_text(self, body: Body, *, key: str | None = None) -> Generator[str]:
        """The text of one chat completion, piece by piece."""
        with closing(self.chat(body, key=key)) as chunks:
            yield from filter(None, map(text_of, chunks))

    def dead_letters(self, *, limit: int = 100, after: str | None = None) -> list[Json]:
        """Requests that were set aside, newest first; those older than the letter `after`."""
        return self._run(self._calls.dead_letters(limit, after))

    def dead_letter(self, letter_id: str) -> Json:
        return self._run(self._calls.dead_letter(letter_id))

    def replay_dead_letter(self, letter_id: str, *, key: str | None = None) -> Json:
        """The new job that runs the letter's request again."""
        return self._run(self._calls.replay(letter_id, key))

    def remove_dead_letter(self, letter_id: str) -> None:
        self._run(self._calls.remove(letter_id))

    def purge_dead_letters(self) -> int:
        """How many there were."""
        return self._run(self._calls.purge())

    def _run(self, flow: Flow[Result]) -> Result:
        run = Run(flow)
        for _ in self._items(run):
            pass
        result: Result = run.result
        return result

    def _items(self, run: Run[Any]) -> Generator[Any]:
        with closing(Wire(self._http)) as wire:
            while (command := run.next()) is not None:
                if isinstance(command, Emit):
                    yield command.item
                    continue
                try:
                    run.answer = wire.do(command)
                except TROUBLE as error:
                    run.failure = lost(error)


class Wire:
    """One exchange at a time."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._response: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())

    def do(self, command: Command) -> Reply | bytes | None:
        """Raises TROUBLE."""
        match command:
            case Send():
                return self._send(command)
            case Read():
                return next(self._chunks, b"")
            case Pause(seconds):
                time.sleep(seconds)
        return None

    def _send(self, asked: Send) -> Reply:
        self.close()
        request = self._http.build_request(
            asked.method, asked.url, headers=asked.headers, params=asked.params or None, json=asked.body
        )
        self._response = response = self._http.send(request, stream=True)
        if asked.stream and response.is_success:
            self._chunks = response.iter_bytes()
            return Reply(response.status_code, response.headers)
        content = response.read()
        return Reply(response.status_code, response.headers, content)

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
