"""Gives a client the answer to its admitted request, as a stream or whole. It does not know how an API words it.

A client that leaves cancels its request, unless the answer is a lasting one: to that it can come back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from producer_api.attend import STOPPING, ClientGone, Stopping
from producer_api.context import Context
from producer_api.gateway.admit import Admission
from producer_api.headers import REPLAYED
from producer_api.sse import Events, EventStream, Framing
from shared.delivery.answer import Answer, collect
from shared.errors import HeadraceError


class Reply:
    """The answer of one request to one client, timed from here on.

    Args:
        lasting: the answer goes on without its client.
    """

    def __init__(self, context: Context, request: Request, admission: Admission, *, lasting: bool) -> None:
        self._context = context
        self._request = request
        self._id = admission.request.id
        self._stopwatch = context.time(context.note(request, admission.request))
        self._lasting = lasting
        self._headers = REPLAYED if admission.joined else {}

    def stream(self, framing: Framing, *, after: int = -1, eager: bool = False) -> Response:
        """What comes after seq `after`; `eager` as EventStream's."""
        leave = None if self._lasting else self._abandon
        attendance = self._context.attendance
        return EventStream(
            self._events(after), framing, attendance, eager=eager, abandon=leave, headers=self._headers
        )

    async def whole(self, word: Callable[[Answer], Any]) -> Response:
        """All of it, once it has ended, as `word` words it. Raises what `word` raises, Unavailable."""
        attend = self._context.attendance.attend
        try:
            answer = await attend(self._request.receive, collect(self._events(-1)), resumable=self._lasting)
        except (ClientGone, Stopping, HeadraceError) as error:
            if not self._lasting:
                self._abandon()
            raise (STOPPING if isinstance(error, Stopping) else error) from None
        content = msgspec.json.encode(word(answer))
        return Response(content, headers=self._headers, media_type="application/json")

    def _events(self, after: int) -> Events:
        context = self._context
        return self._stopwatch.watch(
            context.backend.token_log.follow(self._id, after, idle=context.settings.keepalive)
        )

    def _abandon(self) -> None:
        self._stopwatch.finish = "abandoned"
        self._context.gateway.abandon(self._id)
