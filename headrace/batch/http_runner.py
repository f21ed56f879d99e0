"""Run the lines of a batch over the HTTP API: each is a chat completion or a job, as its url says."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from headrace.batch.input_file import CHAT_URL, Line
from headrace.batch.output_record import Record
from headrace.client import AsyncHeadraceClient
from shared.errors import HeadraceError, QueueFull, TenantQueueFull, Unavailable


class HttpLineRunner:
    """LineRunner over HTTP.

    The idempotency key of a line is made of the run's id and the line's number, so that a line sent again joins the
    request that is already in flight.

    Args:
        urls: addresses of the API replicas.
        run: id of the run.
        api_key: required only if the API checks keys.
        patience: how long the API may be unavailable, in seconds.
    """

    def __init__(self, urls: list[str], run: str, *, api_key: str | None, patience: float) -> None:
        self._client = AsyncHeadraceClient(urls, api_key=api_key, patience=patience)
        self._run = run

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def result(self, line: Line) -> Record:
        """Return the record of a line; retry for as long as the queue is full. Raises Unavailable."""
        key = f"{self._run}-{line.number}"
        while True:
            try:
                if line.url == CHAT_URL:
                    return Record.from_completion(self._run, line, await self._client.complete(line.body, key=key))
                job = await self._client.submit(line.body, key=key)
                return Record.from_job(self._run, line, await self._client.result(job["id"]))
            except (QueueFull, TenantQueueFull):
                continue  # the API is reachable, and the client has already waited for its Retry-After
            except Unavailable:
                raise
            except HeadraceError as error:
                return Record.from_refusal(self._run, line, error)
