"""Gives a client the answer to its admitted request, as a stream or whole. It does not know how an API words it.

Requests that were admitted together have one answer. A client that leaves cancels them, unless the answer is a
lasting one: to that it can come back.
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
from producer_api.observability.request_log import Facts
from producer_api.services import Context
from shared.errors import HeadraceError
from shared.token_log.answer import Answer, collect, ending
from shared.token_log.merge import follow_all


class Reply:
    """The answer of one request to one client, timed from here on.

    Args:
        lasting: the answer goes on without its client.
    """

    def __init__(self, context: Context, facts: Facts, admission: Admission, *, lasting: bool) -> None:
        self._context = context
        self._requests = admission.requests
        context.note(facts, admission.request)
        self._stopwatch = context.time(facts, admission.requests, lasting=lasting)
        self._lasting = lasting
        self._headers = REPLAYED if admission.joined else {}

    def stream(
        self, framing: Framing, *, after: int | Sequence[int] = -1, eager: bool = False, again: bool = False
    ) -> Response:
        """What comes after seq `after`, or after each request's; `eager` is EventStream's, `again` follow_all's."""
        leave = None if self._lasting else self.abandon
        open_answers = self._context.open_answers
        return EventStream(
            self.events(after, again=again),
            framing,
            open_answers,
            eager=eager,
            abandon=leave,
            headers=self._headers,
        )

    async def whole(self, request: Request, word: Callable[[Answer], Any]) -> Response:
        """All of it to `request`, once it has ended, as `word` words it. Raises what `word` raises, Unavailable."""
        attend = self._context.open_answers.run
        try:
            answer = await attend(collect(self.events(-1)), disconnect(request.receive), resumable=self._lasting)
        except (ClientGone, Stopping, HeadraceError) as error:
            if not self._lasting:
                self.abandon()
            raise (shutdown_error() if isinstance(error, Stopping) else error) from None
        return json_response(word(answer), headers=self._headers)

    def events(self, after: int | Sequence[int], *, again: bool = False) -> Events:
        """What comes after seq `after`, or after each request's; `again` is follow_all's."""
        context = self._context
        places = [after] * len(self._requests) if isinstance(after, int) else after
        followed = follow_all(
            context.backend.token_log, self._requests, places, idle=context.settings.keepalive, again=again
        )
        alone = self._lasting or len(self._requests) == 1
        return self._stopwatch.watch(followed if alone else self._together(followed))

    async def _together(self, events: Events) -> Events:
        """The same; what is of no use without one that failed is cancelled."""
        async with aclosing(events):
            async for event in events:
                if event is not None and event.terminal is not None and ending(event.terminal) is not None:
                    self._cancel()
                yield event

    def abandon(self) -> None:
        """The client has left an answer that is no use to anybody else."""
        self._stopwatch.finish = "abandoned"
        self._cancel()

    def _cancel(self) -> None:
        for each in self._requests:
            self._context.admitted.abandon(each.id)
