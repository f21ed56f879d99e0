"""Who calls: settled once for each request, before its route. It knows nothing of how a caller proves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request


@dataclass(frozen=True)
class Principal:
    """A caller and what it may do.

    Attributes:
        tenant: who owns what this caller makes; others' are 404 to it.
        key_id: the API key or token by which it came; empty without one.
        plan: the name of its limits; empty for the default ones.
        admin: may use the routes of administration.
        models, routes, classes: the names it may use; None for all.
    """

    tenant: str
    key_id: str = ""
    plan: str = ""
    admin: bool = False
    models: frozenset[str] | None = None
    routes: frozenset[str] | None = None
    classes: frozenset[str] | None = None


ANONYMOUS = Principal("default", admin=True)  # where the server asks nobody for a key


def principal_of(request: Request) -> Principal:
    """Who sent `request`."""
    found: Principal = request.state.facts.principal
    return found


def _tenant_of(request: Request) -> str:
    return principal_of(request).tenant


Tenant = Annotated[str, Depends(_tenant_of)]  # a route's parameter: whose the request is
