"""Asynchronous client: runs the flows with httpx and asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from headrace.client.httpx_config import LIMITS, TIMEOUT, TRANSPORT_ERRORS, credentials, request_of, unavailable
from headrace.client.operations import Operations
from headrace.client.sans_io import Clock, Command, Emit, Flow, Pause, Read, Replicas, Reply, Run, Send
from headrace.client.stream_readers import Body, ChatStreamReader, JobEvent, Json, chunk_text

Result = TypeVar("Result")


class AsyncHeadraceClient:
    """Client of one API or of several replicas of it; an asynchronous context manager.

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
        self._http = httpx.AsyncClient(timeout=TIMEOUT, limits=LIMITS, headers=credentials(api_key))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def submit(self, body: Body, *, key: str | None = None) -> Json:
        """Submit a job and return it. It is queued once, however often it is sent.

        `key` is an idempotency key of the caller, for retries by the caller.
        """
        return await self._run(self._operations.submit(body, key))

    async def job(self, job_id: str) -> Json:
        """Return a job in its current state."""
        return await self._run(self._operations.job(job_id))

    async def result(self, job_id: str) -> Json:
        """Wait until the job has ended (completed, failed or cancelled), and return it."""
        return await self._run(self._operations.result(job_id))

    async def timeline(self, job_id: str) -> Json:
        """Return where the time of a job went, up to now if it is unfinished."""
        return await self._run(self._operations.timeline(job_id))

    async def cancel(self, job_id: str) -> Json:
        """Cancel a job and return it."""
        return await self._run(self._operations.cancel(job_id))

    async def recording(self, job_id: str) -> Json:
        """Return the request of a completed job with its answer, token by token."""
        return await self._run(self._operations.recording(job_id))

    async def run_recording(self, recording: Body, *, key: str | None = None) -> Json:
        """Run a recorded request again, and return the new job."""
        return await self._run(self._operations.run_recording(recording, key))

    async def models(self) -> list[Json]:
        """Return the models that are served."""
        return await self._run(self._operations.models())

    async def set_asleep(self, model: str, *, asleep: bool) -> Json:
        """Put a model to sleep, or wake it. `url` must be that of the admin port."""
        return await self._run(self._operations.set_asleep(model, asleep))

    async def administer(self, method: str, path: str, body: Body | None = None) -> Json:
        """Call a route of the admin port; return its JSON, {} for none. `url` must be that of the admin port."""
        return await self._run(self._operations.administer(method, path, body))

    async def ready(self) -> Json:
        """Return the body of /ready, whether ready or not. This call is not retried."""
        return await self._run(self._operations.ready())

    def events(self, job_id: str, after: int = -1) -> AsyncIterator[JobEvent]:
        """Return each event after seq `after` once, across lost connections; the last one is the end."""
        return self._items(Run(self._operations.events(job_id, after)))

    def stream(self, body: Body, *, key: str | None = None) -> AsyncIterator[JobEvent]:
        """Submit a job and return its events."""
        return self._items(Run(self._operations.stream(body, key)))

    async def chat(self, body: Body, *, key: str | None = None) -> AsyncGenerator[Json]:
        """Yield the chunks of one chat completion, across lost connections."""
        reader = ChatStreamReader()
        run = Run(self._operations.chat(body, key, reader))
        try:
            async with aclosing(self._items(run)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            if not run.ended:
                await self._run(self._operations.abandon(reader))

    async def complete(self, body: Body, *, key: str | None = None) -> Json:
        """Return one whole chat completion, across lost connections.

        If the call is abandoned, the request continues, and the same `key` returns its answer.
        """
        return await self._run(self._operations.complete(body, key))

    async def chat_text(self, body: Body, *, key: str | None = None) -> AsyncGenerator[str]:
        """Yield the text of one chat completion, piece by piece."""
        async with aclosing(self.chat(body, key=key)) as chunks:
            async for chunk in chunks:
                if text := chunk_text(chunk):
                    yield text

    async def dead_letters(self, *, limit: int = 100, after: str | None = None) -> list[Json]:
        """Return dead letters, newest first; with `after`, those older than that letter."""
        return await self._run(self._operations.dead_letters(limit, after))

    async def dead_letter(self, letter_id: str) -> Json:
        """Return one dead letter, with its request."""
        return await self._run(self._operations.dead_letter(letter_id))

    async def replay_dead_letter(self, letter_id: str, *, key: str | None = None) -> Json:
        """Queue the request of a dead letter again, and return the new job."""
        return await self._run(self._operations.replay(letter_id, key))

    async def remove_dead_letter(self, letter_id: str) -> None:
        """Delete one dead letter."""
        await self._run(self._operations.remove(letter_id))

    async def purge_dead_letters(self) -> int:
        """Delete all dead letters, and return how many there were."""
        return await self._run(self._operations.purge())

    async def _run(self, flow: Flow[Result]) -> Result:
        run = Run(flow)
        async for _ in self._items(run):
            pass
        result: Result = run.result
        return result

    async def _items(self, run: Run[Any]) -> AsyncGenerator[Any]:
        async with aclosing(Exchange(self._http)) as exchange:
            while (command := run.next()) is not None:
                if isinstance(command, Emit):
                    yield command.item
                    continue
                try:
                    run.response = await exchange.run(command)
                except TRANSPORT_ERRORS as error:
                    run.failure = unavailable(error)


class Exchange:
    """HTTP exchange of a flow; one at a time."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None

    async def run(self, command: Command) -> Reply | bytes | None:
        """Run one command of a flow. Raises TRANSPORT_ERRORS."""
        match command:
            case Send():
                return await self._send(command)
            case Read():
                assert self._chunks is not None
                return await anext(self._chunks, b"")
            case Pause(seconds):
                await asyncio.sleep(seconds)
        return None

    async def _send(self, command: Send) -> Reply:
        await self.aclose()
        request = request_of(self._http, command)
        self._response = response = await self._http.send(request, stream=True)
        if command.stream and response.is_success:
            self._chunks = response.aiter_bytes()
            return Reply(response.status_code, response.headers)
        content = await response.aread()
        return Reply(response.status_code, response.headers, content)

    async def aclose(self) -> None:
        if self._response is not None:
            await self._response.aclose()
            self._response = None
