"""The application of the admin port: what shows or changes more than one tenant's things.

It shares the parts of the API's application, and stays while that one drains.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware import Middleware

from producer_api.context import Context
from producer_api.gateway.client import Proxies
from producer_api.gateway.errors import register_errors
from producer_api.gateway.rules import check_rules
from producer_api.middleware import BodyLimit, ConnectionLimit, RequestId, RequestLog, SecurityHeaders
from producer_api.openapi import describe
from producer_api.route import add_routes
from producer_api.routes.dead_letters import dead_letters_router
from producer_api.routes.health import alive_router
from producer_api.routes.metrics import metrics_router
from producer_api.schemas.dead_letters import Letter, LetterList, Removed
from producer_api.sites import site_check
from shared.schemas.jobs import Job

CONNECTIONS = 64  # of one process


def create_admin_app(context: Context) -> FastAPI:
    """The ASGI application around the same parts."""
    app = FastAPI(
        title="Headrace administration",
        docs_url=None,
        redoc_url=None,
        middleware=[
            Middleware(RequestId, proxies=Proxies(context.settings.trusted_proxies)),
            Middleware(SecurityHeaders),
            Middleware(RequestLog, journal=context.journal),
            *site_check(context.settings),
            Middleware(ConnectionLimit, most=CONNECTIONS),
            Middleware(BodyLimit, most=context.settings.max_body_bytes, of_path={}),
        ],
    )
    register_errors(app)
    for router in (alive_router(), metrics_router(context), dead_letters_router(context, admin=True)):
        add_routes(app, router)
    check_rules(app)
    describe(app, [], [Letter, LetterList, Removed, Job])
    return app
