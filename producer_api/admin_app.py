"""Builds the application of the admin port: metrics, requests, queues, workers, dead letters of all tenants.

It shares the services of the API's application, and keeps serving while that one drains.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware import Middleware

from producer_api.auth.client_address import TrustedProxies
from producer_api.http.dispatch import Dispatcher
from producer_api.http.endpoint_table import table_of
from producer_api.http.errors import register_errors
from producer_api.http.host_check import host_check
from producer_api.http.middleware import (
    NO_TELEMETRY,
    BodyLimit,
    RequestId,
    RequestLimit,
    RequestLog,
    SecurityHeaders,
)
from producer_api.openapi.document import describe
from producer_api.routes.catalog import ADMIN
from producer_api.services import Context

MAX_CONNECTIONS = 64  # of one process


def create_admin_app(context: Context) -> FastAPI:
    """Return the ASGI application around an API's services."""
    table = table_of(ADMIN)
    app = FastAPI(
        title="Headrace administration",
        openapi_url=None,  # routes/openapi.py serves it
        redirect_slashes=False,
        telemetry=NO_TELEMETRY,
        middleware=[
            Middleware(RequestId, endpoints=table, proxies=TrustedProxies(context.settings.trusted_proxies)),
            Middleware(SecurityHeaders),
            Middleware(RequestLog, journal=context.request_logger),
            *host_check(context.settings),
            Middleware(RequestLimit, max_requests=MAX_CONNECTIONS),
            Middleware(BodyLimit, max_bytes=context.settings.max_body_bytes, max_upload_bytes=0),  # no uploads
        ],
    )
    app.state.context, app.state.endpoints = context, table
    register_errors(app)
    app.router.routes.append(Dispatcher(table, context.authenticate, {"context": context}, context.backend.audit))
    describe(app, table.endpoints, {})
    return app
