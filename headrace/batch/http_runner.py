"""Runs one line over the HTTP API: a chat completion, or a job, by its url."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from headrace.batch.input_file import CHAT, Line
from headrace.batch.output_record import Record, of_completion, of_job, of_refusal
from headrace.client import AsyncHeadraceClient
from shared.errors import HeadraceError, QueueFull, TenantQueueFull, Unavailable


class OverHttp:
    """A Way: every line has a key made of the run and its number, so that one sent again joins what is in flight.

    Args:
        urls: of the API's replicas.
        run: the run's id.
        api_key: where the API asks for one.
        patience: seconds for which the API may be away.
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
        """Waits as long as there is no room in the queue. Raises Unavailable."""
        key = f"{self._run}-{line.number}"
        while True:
            try:
                if line.url == CHAT:
                    return of_completion(self._run, line, await self._client.complete(line.body, key=key))
                job = await self._client.submit(line.body, key=key)
                return of_job(self._run, line, await self._client.result(job["id"]))
            except (QueueFull, TenantQueueFull):
                continue  # the client has waited as it was told to, and the API is there
            except Unavailable:
                raise
            except HeadraceError as error:
                return of_refusal(self._run, line, error)
