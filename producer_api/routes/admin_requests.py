"""Requests of all tenants on the admin port: newest first, by filter, without their texts.

Each queue remembers its last 10,000 requests in the order of their publication. A page merges these by time, and
looks at a bounded number of them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from producer_api.admission.deadline import redis_deadline
from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.json_body import json_response
from producer_api.openapi.pagination import limit_of, limit_parameter
from producer_api.openapi.parameters import parameter
from producer_api.routes.admin_queues import check_queue, visible_queues
from producer_api.schemas.administration import RequestDetails, RequestPage, RequestView
from producer_api.services import Context
from shared.errors import InvalidRequest
from shared.models.names import MODEL_NAME
from shared.protocol import PriorityClass, RequestState
from shared.queue.survey import RecentRequest
from shared.token_log.interface import RequestRecord

DEFAULT_LIMIT, MAX_LIMIT = 50, 200  # requests in one page
MAX_EXAMINED = 1000  # requests that one call looks at
CURSOR = re.compile(r"([1-9]\d{0,14})-(\d{1,15})-(.{1,256})", re.ASCII | re.DOTALL)
STATES = tuple(state.value for state in RequestState)
CLASSES = tuple(priority.value for priority in PriorityClass)


class Cursor(NamedTuple):
    """Place of a request among those of all queues."""

    milliseconds: int
    number: int
    model: str

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Raises InvalidRequest."""
        found = CURSOR.fullmatch(text)
        if found is None or not MODEL_NAME.fullmatch(found[3]):
            raise InvalidRequest("cursor must be a next_cursor of an earlier page", param="cursor")
        return cls(int(found[1]), int(found[2]), found[3])

    @property
    def order(self) -> tuple[int, int, str]:
        """Sorts newest first, and those of one time by model."""
        return -self.milliseconds, -self.number, self.model

    def __str__(self) -> str:
        return f"{self.milliseconds}-{self.number}-{self.model}"


@dataclass(frozen=True)
class Filter:
    """The requests that a caller asks for; "" for all."""

    model: str
    tenant: str
    priority: str
    state: str

    @classmethod
    def from_request(cls, request: Request) -> Filter:
        """Raises InvalidRequest."""
        query = request.query_params
        for name, allowed in (("class", CLASSES), ("state", STATES)):
            if query.get(name, allowed[0]) not in allowed:
                raise InvalidRequest(f"{name} must be one of {', '.join(allowed)}", param=name)
        return cls(query.get("model", ""), query.get("tenant", ""), query.get("class", ""), query.get("state", ""))

    def admits(self, record: RequestRecord) -> bool:
        return (
            self.tenant in ("", record.tenant)
            and self.priority in ("", record.priority.value)
            and self.state in ("", record.state.value)
        )


async def list_requests(context: Context, request: Request, caller: Principal) -> Response:
    wanted, limit = Filter.from_request(request), limit_of(request, DEFAULT_LIMIT, MAX_LIMIT)
    given = request.query_params.get("cursor")
    cursor = Cursor.parse(given) if given is not None else None
    async with redis_deadline():
        if wanted.model:
            await check_queue(context, wanted.model, caller)
        models = [wanted.model] if wanted.model else await visible_queues(context, caller)
        found, rest = await newest(context, models, wanted.admits, limit, cursor)
    return json_response(RequestPage([RequestView.from_record(each) for each in found], rest and str(rest)))


async def newest(
    context: Context,
    models: Sequence[str],
    admits: Callable[[RequestRecord], bool],
    limit: int,
    cursor: Cursor | None = None,
) -> tuple[list[RequestRecord], Cursor | None]:
    """Return the newest requests of models that are admitted, and where to go on; None at the end."""
    found: dict[str, RequestRecord] = {}
    examined = 0
    while examined < MAX_EXAMINED:
        page = await _merged(context, models, cursor, MAX_LIMIT)
        records = await context.backend.token_log.records([each.job_id for _, each in page])
        for (place, each), record in zip(page, records, strict=True):
            cursor = place
            if record is not None and admits(record):
                found.setdefault(each.job_id, record)
                if len(found) == limit:
                    return list(found.values()), cursor
        if len(page) < MAX_LIMIT:
            return list(found.values()), None
        examined += len(page)
    return list(found.values()), cursor


async def _merged(
    context: Context, models: Sequence[str], cursor: Cursor | None, most: int
) -> list[tuple[Cursor, RecentRequest]]:
    """Return the requests after a cursor, of all queues together."""

    async def of(model: str) -> list[tuple[Cursor, RecentRequest]]:
        before = None if cursor is None else cursor[:2]
        inclusive = cursor is not None and model > cursor.model
        recent = await context.backend.queues.recent(model, most, before=before, inclusive=inclusive)
        return [(Cursor(*each.cursor, model), each) for each in recent]

    pages = await asyncio.gather(*(of(model) for model in models))
    return sorted((each for page in pages for each in page), key=lambda pair: pair[0].order)[:most]


async def see(context: Context, job_id: str, caller: Principal) -> Response:
    record = await context.request_control.record(job_id, None)
    caller.check_model(record.named_model)
    outlook = await context.request_control.outlook(record)
    found = RequestDetails.from_record(record)
    found.timeline = f"/v1/jobs/{record.id}/timeline"
    if outlook is not None:
        found.position, found.expected_wait = outlook.position, outlook.wait
    return json_response(found)


_endpoint = partial(Endpoint, group=None, admin=True, tag="Operation")
_FILTERS = [
    parameter("model", "query", "only those of this model", type="string"),
    parameter("tenant", "query", "only those of this tenant", type="string"),
    parameter("class", "query", "only those of this class", type="string", enum=list(CLASSES)),
    parameter("state", "query", "only those in this state", type="string", enum=list(STATES)),
]
CURSOR_PARAMETER = parameter("cursor", "query", "the next_cursor of the page before", type="string")
ADMIN_ENDPOINTS = (
    _endpoint(
        "GET",
        "/admin/requests",
        list_requests,
        summary="List requests of all tenants, newest first",
        parameters=[
            *_FILTERS,
            limit_parameter(DEFAULT_LIMIT, MAX_LIMIT, "requests"),
            CURSOR_PARAMETER,
        ],
        responses=(ResponseDoc("a page, which may be short although more follow", RequestPage),),
        failures=(400, 404, 500, 503),
    ),
    _endpoint(
        "GET",
        "/admin/requests/{job_id}",
        see,
        summary="Get one request, without its texts",
        responses=(ResponseDoc("the request", RequestDetails),),
        failures=(404, 500, 503),
    ),
)
