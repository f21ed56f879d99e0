"""The application of the admin port: what shows or changes more than one tenant's things.

It shares the parts of the API's application, and stays while that one drains.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware import Middleware

from producer_api.auth.client_address import TrustedProxies
from producer_api.http.access import check_rules
from producer_api.http.endpoint import add_routes
from producer_api.http.errors import register_errors
from producer_api.http.host_check import site_check
from producer_api.http.middleware import BodyLimit, ConnectionLimit, RequestId, RequestLog, SecurityHeaders
from producer_api.openapi.document import describe
from producer_api.routes.dead_letters import dead_letters_router
from producer_api.routes.health import alive_router
from producer_api.routes.metrics import metrics_router
from producer_api.schemas.dead_letters import Letter, LetterList, Removed
from producer_api.services import Context
from shared.schemas.native.jobs import Job

CONNECTIONS = 64  # of one process


def create_admin_app(context: Context) -> FastAPI:
    """The ASGI application around the same parts."""
    app = FastAPI(
        title="Headrace administration",
        docs_url=None,
        redoc_url=None,
        middleware=[
            Middleware(RequestId, proxies=TrustedProxies(context.settings.trusted_proxies)),
            Middleware(SecurityHeaders),
            Middleware(RequestLog, journal=context.request_logger),
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
