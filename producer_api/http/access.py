"""Who may use a route: each names its rule, and an application with one that does not cannot be made.

It does not know the routes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastapi import FastAPI
from fastapi.params import Depends
from fastapi.routing import RouteContext, iter_route_contexts
from starlette.requests import Request

from producer_api.auth.authenticator import Authenticator
from producer_api.observability.request_log import RequestFacts
from shared.accounts.scopes import ROUTES


class Rule:
    """Of a route or a method: settles who calls, and refuses those that may not use its group.

    Args:
        group: one of ROUTES.
        authenticate: tells who calls.
        admin: only for those that may administer.
    """

    def __init__(self, group: str, authenticate: Authenticator, *, admin: bool = False) -> None:
        assert admin or group in ROUTES, f"{group} is none of the groups of routes"
        self.group = group
        self.admin = admin
        self._authenticate = authenticate

    async def __call__(self, request: Request) -> None:
        """Raises Unauthenticated, TooManyFailures, PermissionDenied, Unavailable."""
        await self.settle(request.state.facts, request.headers.getlist("authorization"))

    async def settle(self, facts: RequestFacts, given: Sequence[str]) -> None:
        """The same, by the Authorization headers that were `given`."""
        facts.principal = await self._authenticate(given, facts.client.address)
        facts.principal.check_route(self.group, admin=self.admin)


async def _anybody() -> None:
    """The rule of a route that tells nothing of anybody."""


PUBLIC = Depends(_anybody)


def check_rules(app: FastAPI) -> None:
    """Raises AssertionError for a route without exactly one rule."""
    for route in routes_of(app):
        given = getattr(route, "dependencies", ())  # a mount or a plain route has none
        rules = [each for each in given if isinstance(each.dependency, Rule) or each is PUBLIC]
        assert len(rules) == 1, (
            f"{route.path} has {len(rules)} rules: give its router dependencies=[context.allow(GROUP)], or [PUBLIC]"
        )


def rule_of(route: RouteContext) -> Rule | None:
    """None for a public route."""
    return next((each.dependency for each in route.dependencies if isinstance(each.dependency, Rule)), None)


def routes_of(app: FastAPI) -> Iterator[RouteContext]:
    """All but the document of the API, which FastAPI adds by itself, and which is public."""
    for route in iter_route_contexts(app.routes):
        if route.path != app.openapi_url:
            yield route
