"""Puts the front end together: routes, errors and middleware around the parts that it is handed.

It opens no connection and reads no environment.
"""

from __future__ import annotations

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from producer_api.admission.model_catalog import ModelCatalog
from producer_api.answers.job_events import EndData, TokensData
from producer_api.auth.client_address import TrustedProxies
from producer_api.http.access import check_rules, routes_of
from producer_api.http.endpoint import add_routes
from producer_api.http.errors import register_errors
from producer_api.http.host_check import listed, site_check
from producer_api.http.middleware import BodyLimit, ConnectionLimit, Drain, RequestId, RequestLog, SecurityHeaders
from producer_api.http.multipart import OVERHEAD
from producer_api.http.ratelimit_headers import LimitHeaders
from producer_api.observability.metrics import Metrics
from producer_api.openapi.document import describe
from producer_api.openapi.examples import Examples, examples
from producer_api.routes.batches import batches_router
from producer_api.routes.chat import chat_router
from producer_api.routes.completions import completions_router
from producer_api.routes.dead_letters import dead_letters_router
from producer_api.routes.embeddings import embeddings_router
from producer_api.routes.files import PREFIX, files_router
from producer_api.routes.health import Readiness, alive_router, ready_router
from producer_api.routes.jobs import jobs_router
from producer_api.routes.models import Model, ModelList, models_router
from producer_api.routes.pages import pages_router
from producer_api.routes.responses import responses_router
from producer_api.routes.tokenize import tokenize_router
from producer_api.schemas.batches import BatchList, BatchObject, BatchRequest
from producer_api.schemas.dead_letters import Letter, LetterList, Removed
from producer_api.schemas.files import File, FileDeleted, FileList
from producer_api.schemas.jobs import JobSubmission
from producer_api.services import Context
from shared.backend import Backend
from shared.batches.store import Batches
from shared.files.store import Files
from shared.models.model_store import MINILM
from shared.schemas.native.jobs import Job
from shared.schemas.native.tokenize import Detokenized, DetokenizeRequest, TokenizeRequest, Tokens
from shared.schemas.openai.chat import ChatCompletion, ChatRequest, Chunk
from shared.schemas.openai.completions import Completion, CompletionRequest
from shared.schemas.openai.embeddings import EmbeddingList, EmbeddingRequest
from shared.schemas.openai.response_object import ItemList, ResponseDeleted, ResponseObject
from shared.schemas.openai.responses import ResponseRequest
from shared.settings import Settings

DESCRIPTION = "Queue-driven inference: an answer, once accepted, is never lost. OpenAI clients work unchanged."
VERSION = "0.1.0"
EXPOSED = [  # to other sites' pages
    *("idempotent-replayed", "location", "retry-after", "x-request-id", "x-should-retry"),
    *(f"x-ratelimit-{name}-{unit}" for name in ("limit", "remaining", "reset") for unit in ("requests", "tokens")),
]


def create_app(settings: Settings, backend: Backend) -> FastAPI:
    """The front end as an ASGI application; `app.state.context` holds its parts."""
    metrics = Metrics(CollectorRegistry())
    context = Context.from_settings(settings, backend, metrics)
    app = FastAPI(
        title="Headrace",
        version=VERSION,
        description=DESCRIPTION,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        middleware=[
            Middleware(RequestId, proxies=TrustedProxies(settings.trusted_proxies)),
            Middleware(SecurityHeaders),
            *_cors(settings),
            Middleware(RequestLog, journal=context.request_logger),
            *site_check(settings),
            Middleware(LimitHeaders, meter=context.rate_limiter),
            Middleware(Drain, attendance=context.attendance),
            Middleware(ConnectionLimit, most=settings.max_connections),
            Middleware(
                BodyLimit, most=settings.max_body_bytes, of_path={PREFIX: settings.max_file_bytes + OVERHEAD}
            ),
        ],
    )
    app.state.context = context
    register_errors(app)
    for router in (
        chat_router(context),
        completions_router(context),
        responses_router(context),
        embeddings_router(context),
        tokenize_router(context),
        jobs_router(context),
        dead_letters_router(context),
        models_router(context),
        alive_router(),
        ready_router(context),
        pages_router(),
    ):
        add_routes(app, router)
    if backend.server is not None:  # in memory there is no tasks process to share them with
        files = Files.of(settings, backend)
        add_routes(app, files_router(context, files))
        add_routes(app, batches_router(context, files, Batches.of(settings, backend.server)))
    check_rules(app)
    describe(
        app,
        [
            *(ChatRequest, CompletionRequest, ResponseRequest, EmbeddingRequest),
            *(TokenizeRequest, DetokenizeRequest, JobSubmission, BatchRequest),
        ],
        [
            *(ChatCompletion, Chunk, Completion, Job, ModelList, Model, Readiness, TokensData, EndData),
            *(ResponseObject, ResponseDeleted, ItemList),
            *(EmbeddingList, Tokens, Detokenized),
            *(LetterList, Letter, Removed, File, FileList, FileDeleted, BatchObject, BatchList),
        ],
        _examples(app, context.catalog),
    )
    return app


def _cors(settings: Settings) -> list[Middleware]:
    """Lets pages of other sites call, with a key of their own; cookies are nothing to us."""
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=listed(settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
            max_age=600,
        )
    ]


def _examples(app: FastAPI, catalog: ModelCatalog) -> dict[str, Examples]:
    """Those of the routes that there are."""
    paths = {route.path_format for route in routes_of(app)}
    found = examples(catalog.served_model, catalog.embedding_model or MINILM.name)
    return {path: bodies for path, bodies in found.items() if path in paths}
