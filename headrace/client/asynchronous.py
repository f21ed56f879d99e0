"""The asynchronous client: runs the same flows with httpx and asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from headrace.client.httpx_config import LIMITS, TIMEOUT, TROUBLE, credentials, lost
from headrace.client.operations import Body, Calls, ChatReader, JobEvent, Json, text_of
from headrace.client.sans_io import Clock, Command, Emit, Flow, Pause, Read, Replicas, Reply, Run, Send

Result = TypeVar("Result")


class AsyncHeadraceClient:
    """Talks to one API, or to several replicas of it; an asynchronous context manager.

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
        """The job, queued once however often it is sent. `key`: one of yours, for retries of your own."""
        return await self._run(self._calls.submit(body, key))

    async def job(self, job_id: str) -> Json:
        return await self._run(self._calls.job(job_id))

    async def result(self, job_id: str) -> Json:
        """The job, once it has ended: completed, failed or cancelled."""
        return await self._run(self._calls.result(job_id))

    async def cancel(self, job_id: str) -> Json:
        return await self._run(self._calls.cancel(job_id))

    async def models(self) -> list[Json]:
        return await self._run(self._calls.models())

    async def ready(self) -> Json:
        """What /ready says, ready or not; asked once."""
        return await self._run(self._calls.ready())

    def events(self, job_id: str, after: int = -1) -> AsyncIterator[JobEvent]:
        """Each event after seq `after`, once, through lost connections; the last one tells the end."""
        return self._items(Run(self._calls.events(job_id, after)))

    def stream(self, body: Body, *, key: str | None = None) -> AsyncIterator[JobEvent]:
        """Submit a job and follow its events."""
        return self._items(Run(self._calls.stream(body, key)))

    async def chat(self, body: Body, *, key: str | None = None) -> AsyncGenerator[Json]:
        """The chunks of one chat completion, through lost connections."""
        reader = ChatReader()
        run = Run(self._calls.chat(body, key, reader))
        try:
            async with aclosing(self._items(run)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            if not run.ended:
                await self._run(self._calls.abandon(reader))

    async def complete(self, body: Body, *, key: str | None = None) -> Json:
        """One chat completion, whole, through lost connections. Left early it goes on, for whoever has its key."""
        return await self._run(self._calls.complete(body, key))

    async def chat_text(self, body: Body, *, key: str | None = None) -> AsyncGenerator[str]:
        """The text of one chat completion, piece by piece."""
        async with aclosing(self.chat(body, key=key)) as chunks:
            async for chunk in chunks:
                if text := text_of(chunk):
                    yield text

    async def dead_letters(self, *, limit: int = 100, after: str | None = None) -> list[Json]:
        """Requests that were set aside, newest first; those older than the letter `after`."""
        return await self._run(self._calls.dead_letters(limit, after))

    async def dead_letter(self, letter_id: str) -> Json:
        return await self._run(self._calls.dead_letter(letter_id))

    async def replay_dead_letter(self, letter_id: str, *, key: str | None = None) -> Json:
        """The new job that runs the letter's request again."""
        return await self._run(self._calls.replay(letter_id, key))

    async def remove_dead_letter(self, letter_id: str) -> None:
        await self._run(self._calls.remove(letter_id))

    async def purge_dead_letters(self) -> int:
        """How many there were."""
        return await self._run(self._calls.purge())

    async def _run(self, flow: Flow[Result]) -> Result:
        run = Run(flow)
        async for _ in self._items(run):
            pass
        result: Result = run.result
        return result

    async def _items(self, run: Run[Any]) -> AsyncGenerator[Any]:
        async with aclosing(Wire(self._http)) as wire:
            while (command := run.next()) is not None:
                if isinstance(command, Emit):
                    yield command.item
                    continue
                try:
                    run.answer = await wire.do(command)
                except TROUBLE as error:
                    run.failure = lost(error)


class Wire:
    """One exchange at a time."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None

    async def do(self, command: Command) -> Reply | bytes | None:
        """Raises TROUBLE."""
        match command:
            case Send():
                return await self._send(command)
            case Read():
                assert self._chunks is not None
                return await anext(self._chunks, b"")
            case Pause(seconds):
                await asyncio.sleep(seconds)
        return None

    async def _send(self, asked: Send) -> Reply:
        await self.aclose()
        request = self._http.build_request(
            asked.method, asked.url, headers=asked.headers, params=asked.params or None, json=asked.body
        )
        self._response = response = await self._http.send(request, stream=True)
        if asked.stream and response.is_success:
            self._chunks = response.aiter_bytes()
            return Reply(response.status_code, response.headers)
        content = await response.aread()
        return Reply(response.status_code, response.headers, content)

    async def aclose(self) -> None:
        if self._response is not None:
            await self._response.aclose()
            self._response = None
