"""How a request gets to an endpoint of ours, which reads its body by itself and answers with a Response.

FastAPI finds such a route and makes the document of it. Its own way to an endpoint, with parsed bodies and with
dependencies that are opened and closed, which none of these have, cost a fifth of all that a request cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args, get_type_hints

from fastapi import APIRouter, FastAPI
from fastapi.params import Depends
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from producer_api.http.access import Rule

Given = Callable[[Request], Any]  # what a parameter is given


class Route(APIRoute):
    """Asks its rule, then its endpoint, whose parameters are the request, what is known of it, or in its path."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        [self._rule] = [each.dependency for each in self.dependencies if isinstance(each.dependency, Rule)]
        hints = get_type_hints(endpoint, include_extras=True)
        hints.pop("return", None)
        self._parameters = {name: self._given(name, hint) for name, hint in hints.items()}
        self.app = self._answer

    def _given(self, name: str, hint: Any) -> Given:
        if hint is Request:
            return lambda request: request
        if name in self.param_convertors:
            return lambda request: request.path_params[name]
        [depends] = [each for each in get_args(hint) if isinstance(each, Depends)]
        assert depends.dependency is not None, f"{name} is not told by a function"
        return depends.dependency

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        await self._rule(request)
        given = {name: of(request) for name, of in self._parameters.items()}
        response = await self.endpoint(**given)
        await response(scope, receive, send)


def add_routes(app: FastAPI, router: APIRouter) -> None:
    """Those of `router`, as the application's own: a router within a router is searched twice for each request."""
    app.router.routes.extend(router.routes)
