"""All endpoints, by the application that serves them.

For an unknown path, the first endpoint that shares most of its segments decides the error format: chat before jobs
makes it OpenAI's under /v1, and pages before tasks make it the native one at / for an unknown method. Files and
batches need a server, which shares them with the batch runner.
"""

from __future__ import annotations

from producer_api.routes import (
    admin_overview,
    admin_queues,
    admin_requests,
    batches,
    chat,
    completions,
    dead_letters,
    embeddings,
    files,
    health,
    jobs,
    kserve,
    kserve_infer,
    kserve_repository,
    lora,
    metrics,
    models,
    openapi,
    pages,
    pooling,
    repository,
    responses,
    scaling,
    sleep,
    task,
    tgi,
    tokenize,
    traffic,
)

IN_MEMORY = (
    *chat.ENDPOINTS,
    *completions.ENDPOINTS,
    *responses.ENDPOINTS,
    *embeddings.ENDPOINTS,
    *pooling.ENDPOINTS,
    *tokenize.ENDPOINTS,
    *tgi.ENDPOINTS,
    *jobs.ENDPOINTS,
    *dead_letters.ENDPOINTS,
    *models.ENDPOINTS,
    *health.ENDPOINTS,
    *openapi.ENDPOINTS,
    *pages.ENDPOINTS,
    *kserve.ENDPOINTS,
    *kserve_infer.ENDPOINTS,
    *kserve_repository.ENDPOINTS,
    *lora.ENDPOINTS,
    *kserve.LAST_ENDPOINTS,
    *task.ENDPOINTS,
)
API = (*IN_MEMORY, *files.ENDPOINTS, *batches.ENDPOINTS)
ADMIN = (
    *health.ADMIN_ENDPOINTS,
    *openapi.ENDPOINTS,
    *metrics.ADMIN_ENDPOINTS,
    *dead_letters.ADMIN_ENDPOINTS,
    *jobs.ADMIN_ENDPOINTS,
    *sleep.ADMIN_ENDPOINTS,
    *kserve_repository.CONTROL_ENDPOINTS,
    *lora.ENDPOINTS,
    *repository.ADMIN_ENDPOINTS,
    *traffic.ADMIN_ENDPOINTS,
    *admin_overview.ADMIN_ENDPOINTS,
    *admin_requests.ADMIN_ENDPOINTS,
    *admin_queues.ADMIN_ENDPOINTS,
    *scaling.ADMIN_ENDPOINTS,
)
BATCHABLE = {each.path: each for each in API if each.batchable is not None}
