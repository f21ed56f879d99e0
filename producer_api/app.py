"""Builds the API's application: endpoints, error handlers and middleware.

It opens no connection and reads no environment.
"""

from __future__ import annotations

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from producer_api.auth.client_address import TrustedProxies
from producer_api.http.dispatch import Dispatcher
from producer_api.http.endpoint_table import table_of
from producer_api.http.errors import register_errors
from producer_api.http.host_check import host_check, split_list
from producer_api.http.middleware import (
    NO_TELEMETRY,
    BodyLimit,
    Drain,
    RequestId,
    RequestLimit,
    RequestLog,
    SecurityHeaders,
)
from producer_api.http.multipart import MAX_OVERHEAD_BYTES
from producer_api.http.ratelimit_headers import LimitHeaders
from producer_api.observability.metrics import Metrics
from producer_api.openapi.document import describe
from producer_api.openapi.examples import CLASSIFICATION_MODEL, EMBEDDING_MODEL, SERVED_MODEL
from producer_api.routes.catalog import API, IN_MEMORY
from producer_api.services import Context
from shared.backend import Backend
from shared.batches.store import Batches
from shared.files.store import Files
from shared.models.model_store import MINILM, SMOLLM2
from shared.settings import Settings
from shared.version import VERSION

DESCRIPTION = "Queue-driven inference: an answer, once accepted, is never lost. OpenAI clients work unchanged."
EXPOSED_HEADERS = [  # to pages of other sites
    *("idempotent-replayed", "location", "retry-after", "x-request-id", "x-should-retry"),
    *(f"x-ratelimit-{name}-{unit}" for name in ("limit", "remaining", "reset") for unit in ("requests", "tokens")),
]


def create_app(settings: Settings, backend: Backend) -> FastAPI:
    """Return the front end as an ASGI application; `app.state` has its `context` and its table of `endpoints`."""
    context = Context.from_settings(settings, backend, Metrics(CollectorRegistry()))
    table = table_of(API if backend.server is not None else IN_MEMORY)
    app = FastAPI(
        title="Headrace",
        version=VERSION,
        description=DESCRIPTION,
        openapi_url=None,  # routes/openapi.py serves it
        redirect_slashes=False,
        telemetry=NO_TELEMETRY,
        middleware=[
            Middleware(RequestId, endpoints=table, proxies=TrustedProxies(settings.trusted_proxies)),
            Middleware(SecurityHeaders),
            *_cors(settings),
            Middleware(RequestLog, journal=context.request_logger),
            *host_check(settings),
            Middleware(LimitHeaders, meter=context.rate_limiter),
            Middleware(Drain, open_answers=context.open_answers),
            Middleware(RequestLimit, max_requests=settings.max_connections),
            Middleware(
                BodyLimit,
                max_bytes=settings.max_body_bytes,
                max_upload_bytes=settings.max_file_bytes + MAX_OVERHEAD_BYTES,
            ),
        ],
    )
    app.state.context, app.state.endpoints = context, table
    register_errors(app)
    app.router.routes.append(Dispatcher(table, context.authenticate, _parts(context), context.backend.audit))
    describe(app, table.endpoints, _example_models(context))
    return app


def _example_models(context: Context) -> dict[str, str]:
    """Return names of models by the placeholders of examples."""
    return {
        SERVED_MODEL: context.catalog.served_model or SMOLLM2.name,
        EMBEDDING_MODEL: context.catalog.embedding_model or MINILM.name,
        CLASSIFICATION_MODEL: "my-classifier",
    }


def _parts(context: Context) -> dict[str, object]:
    """Return what handlers may ask for by name."""
    parts: dict[str, object] = {"context": context}
    if (server := context.backend.server) is not None:
        parts["files"] = Files.from_settings(context.settings, context.backend)
        parts["batches"] = Batches.from_settings(context.settings, server)
    return parts


def _cors(settings: Settings) -> list[Middleware]:
    """Return the middleware that lets pages of other sites call with an API key; cookies are not used."""
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=split_list(settings.cors_origins),
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
            max_age=600,
        )
    ]
