"""Authentication and authorization of one request, HTTP or gRPC."""

from __future__ import annotations

from collections.abc import Sequence

from producer_api.auth.authenticator import Authenticator
from producer_api.observability.request_log import RequestFacts


async def authorize(
    authenticate: Authenticator,
    facts: RequestFacts,
    given: Sequence[str],
    *,
    group: str | None,
    admin: bool = False,
) -> None:
    """Record the caller in `facts`, and check that it may use what it asks for.

    Args:
        given: the Authorization headers.
        group: one of ROUTES; not checked where `admin` is.
        admin: only callers that may administer.

    Raises:
        Unauthenticated, TooManyFailures, PermissionDenied, Unavailable.
    """
    facts.principal = await authenticate(given, facts.client.address)
    facts.principal.check_route(group or "", admin=admin)
