"""Calls the handler of the endpoint that a request was matched to.

FastAPI's own dispatch, with parsed bodies and with dependencies that are opened and closed, cost a fifth of the CPU
time of a request; the handlers here use neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from producer_api.admission.access import authorize
from producer_api.auth.authenticator import Authenticator
from producer_api.http.audit import audited
from producer_api.http.endpoint import PARTS, Endpoint
from producer_api.http.endpoint_table import EndpointTable, match_of
from shared.accounts.audit_log import AuditLog

MODEL_PARAMETER = "name"  # of the paths of administration
Argument = Callable[[Request], Any]  # of a handler, taken from its request


class Dispatcher(BaseRoute):
    """The only route that Starlette's router has: all endpoints of an application.

    Args:
        parts: what handlers may ask for by name, besides the request and its caller.
        audit: records what administrators change.
    """

    def __init__(
        self, table: EndpointTable, authenticate: Authenticator, parts: Mapping[str, object], audit: AuditLog
    ) -> None:
        self._authenticate = authenticate
        self._audit = audit
        self._parts = parts
        self._arguments = {each: self._arguments_of(each) for each in table.endpoints}

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        known = scope["type"] == "http" and match_of(scope).template
        return (Match.FULL if known else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = match_of(scope)
        endpoint = found.endpoint
        if endpoint is None and scope["method"] == "OPTIONS":
            await Response(status_code=204, headers={"allow": ", ".join(found.allowed)})(scope, receive, send)
            return
        if endpoint is None:
            raise HTTPException(status_code=405, headers={"allow": ", ".join(found.allowed)})
        request = Request(scope, receive, send)
        if not endpoint.public:
            given = request.headers.getlist("authorization")
            await authorize(
                self._authenticate, request.state.facts, given, group=endpoint.group, admin=endpoint.admin
            )
        respond = self._change if endpoint.changes else self._respond
        response = await respond(endpoint, request)
        await response(scope, receive, send)

    async def _respond(self, endpoint: Endpoint, request: Request) -> Response:
        """Respond. Raises PermissionDenied if an administrator names a model that its key may not administer."""
        if endpoint.admin and (model := match_of(request.scope).path_params.get(MODEL_PARAMETER)):
            request.state.facts.caller.check_model(model)
        arguments = {name: argument(request) for name, argument in self._arguments[endpoint].items()}
        return await endpoint.handler(**arguments)

    async def _change(self, endpoint: Endpoint, request: Request) -> Response:
        """Respond to an administrative action, which is recorded."""
        target = ", ".join(f"{name}={value}" for name, value in match_of(request.scope).path_params.items())
        action = f"{endpoint.method} {endpoint.path}"
        async with audited(self._audit, request.state.facts.caller, action, target) as outcome:
            response = await self._respond(endpoint, request)
            outcome.status, outcome.code = response.status_code, ""
        return response

    def _arguments_of(self, endpoint: Endpoint) -> dict[str, Argument]:
        return {name: self._argument(endpoint, name) for name in endpoint.handler_parameters}

    def _argument(self, endpoint: Endpoint, name: str) -> Argument:
        match name:
            case "request":
                return lambda request: request
            case "caller":
                return lambda request: request.state.facts.caller
            case "owner" if endpoint.admin:
                return lambda _: None
            case "tenant" | "owner":
                return lambda request: request.state.facts.caller.tenant
            case _ if name in PARTS:
                part = self._parts[name]
                return lambda _: part
            case _:
                return lambda request: match_of(request.scope).path_params[name]
