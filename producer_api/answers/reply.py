"""Reply to an admitted request, as a stream or as one body.

Requests that were admitted together have one answer. If the client disconnects, they are cancelled, unless the
answer is detached: then the client can return for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.gateway import Admission
from producer_api.http.headers import REPLAYED
from producer_api.http.json_body import json_response
from producer_api.http.open_streams import ClientGone, Stopping, disconnect, shutdown_error
from producer_api.http.sse import Events, EventStream, Framing
from producer_api.observability.request_log import RequestFacts
from producer_api.services import Context
from shared.errors import HeadraceError
from shared.token_log.answer import Answer, collect, ending
from shared.token_log.merge import follow_all


class Reply:
    """Reply to one client, timed from its creation.

    Args:
        detached: the answer continues without its client.

    Attributes:
        headers: of the response.
    """

    def __init__(self, context: Context, facts: RequestFacts, admission: Admission, *, detached: bool) -> None:
        self._context = context
        self._requests = admission.requests
        context.note(facts, admission.request)
        self._stopwatch = context.time(facts, admission.requests, detached=detached)
        self._detached = detached
        self.headers = REPLAYED if admission.joined else {}

    def stream(
        self, framing: Framing, *, after: int | Sequence[int] = -1, eager: bool = False, again: bool = False
    ) -> Response:
        """Return the stream after seq `after`, which may be one per request.

        `eager` is passed to EventStream, `again` to follow_all.
        """
        abandon = None if self._detached else self.abandon
        return EventStream(
            self.events(after, again=again),
            framing,
            self._context.open_answers,
            eager=eager,
            abandon=abandon,
            headers=self.headers,
        )

    async def complete(self, request: Request, to_body: Callable[[Answer], Any]) -> Response:
        """Wait for the end of the answer and return it as `to_body` makes it. Raises as `to_body`; Unavailable."""
        answer = await self.answer(request)
        return json_response(to_body(answer), headers=self.headers)

    async def answer(self, request: Request) -> Answer:
        """Wait for the end of the answer and return it. Raises Unavailable."""
        attend = self._context.open_answers.run
        try:
            return await attend(collect(self.events(-1)), disconnect(request.receive), resumable=self._detached)
        except (ClientGone, Stopping, HeadraceError) as error:
            if not self._detached:
                self.abandon()
            raise (shutdown_error() if isinstance(error, Stopping) else error) from None

    def events(self, after: int | Sequence[int], *, again: bool = False) -> Events:
        """Yield the events after seq `after`, which may be one per request; `again` is passed to follow_all."""
        context = self._context
        places = [after] * len(self._requests) if isinstance(after, int) else after
        followed = follow_all(
            context.backend.token_log, self._requests, places, idle=context.settings.keepalive, again=again
        )
        alone = self._detached or len(self._requests) == 1
        return self._stopwatch.watch(followed if alone else self._cancelling_on_failure(followed))

    async def _cancelling_on_failure(self, events: Events) -> Events:
        """Yield the events; when one request fails, cancel the others, which are useless without it."""
        async with aclosing(events):
            async for event in events:
                if event is not None and event.terminal is not None and ending(event.terminal) is not None:
                    self._cancel()
                yield event

    def abandon(self) -> None:
        """Cancel the requests of a client that disconnected."""
        self._stopwatch.finish = "abandoned"
        self._cancel()

    def _cancel(self) -> None:
        for each in self._requests:
            self._context.request_control.abandon(each.id)
