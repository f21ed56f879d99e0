"""Metrics of an API process, and those of admission, which the batch runner has too."""

from __future__ import annotations

from typing import Literal

from shared.metrics.declaration import BETWEEN_TOKENS, FIRST_TOKEN, WHOLE_ANSWER, Declaration


def limited(process: Literal["api", "tasks"]) -> Declaration:
    """Return the counter of what the rate limiter refuses."""
    text = "Requests refused by a limit, or let through uncounted"
    return Declaration("counter", f"headrace_{process}_limited", text, ("reason",))


def duplicates(process: Literal["api", "tasks"]) -> Declaration:
    """Return the counter of requests that were not queued again."""
    text = (
        "Requests that were sent again and not run again: joined to the first, or refused (conflict), because the "
        "idempotency key belongs to another request"
    )
    return Declaration("counter", f"headrace_{process}_duplicates", text, ("outcome",))


LIMITED, DUPLICATES = limited("api"), duplicates("api")
REQUESTS = Declaration(
    "counter",
    "headrace_api_requests",
    "Requests answered, by outcome: ok, refused, failed, unavailable, or left by the client",
    ("model", "class", "route", "outcome"),
)
REFUSALS = Declaration(
    "counter", "headrace_api_refusals", "Requests answered with an error, by its code", ("reason",)
)
TOKENS = Declaration(
    "counter", "headrace_api_tokens", "Tokens of answers sent to clients", ("model", "class", "kind")
)
FIRST = Declaration(
    "histogram",
    "headrace_api_time_to_first_token_seconds",
    "Time from a request's arrival to its first token",
    ("model", "class"),
    FIRST_TOKEN,
)
BETWEEN = Declaration(
    "histogram",
    "headrace_api_inter_token_seconds",
    "Time per token after the first, as read by the client",
    ("model", "class"),
    BETWEEN_TOKENS,
)
WHOLE = Declaration(
    "histogram",
    "headrace_api_request_seconds",
    "Time from a request's arrival to the end of its answer",
    ("model", "class"),
    WHOLE_ANSWER,
)
USAGE_RECORDS = Declaration("counter", "headrace_api_usage_records", "Usage records that this process wrote")
OPEN_STREAMS = Declaration("gauge", "headrace_api_open_streams", "Answers that clients are waiting for or reading")
LOG_LINES_DROPPED = Declaration("counter", "headrace_api_log_lines_dropped", "Log lines that could not be written")
REDIS_UP = Declaration("gauge", "headrace_api_redis_up", "1 if Redis answered at this scrape")
WAITING = Declaration("gauge", "headrace_queue_waiting", "Requests in the queue", ("model",))
WAITING_TOKENS = Declaration(
    "gauge", "headrace_queue_waiting_tokens", "Estimated tokens of the requests in the queue", ("model",)
)
PAUSED = Declaration(
    "gauge",
    "headrace_queue_paused",
    "Requests in the queue that no worker may take, because the model or their tenants are paused",
    ("model",),
)
HELD = Declaration("gauge", "headrace_queue_held", "Requests held by workers", ("model",))
OLDEST = Declaration("gauge", "headrace_queue_oldest_age_seconds", "Age of the oldest waiting request", ("model",))
WAIT_ESTIMATE = Declaration(
    "gauge",
    "headrace_queue_wait_estimate_seconds",
    "Estimated wait of the last request in the queue, at the rate at which workers took requests recently; absent "
    "while requests wait and no rate is known",
    ("model",),
)
WORKERS = Declaration("gauge", "headrace_workers", "Workers, by state", ("model", "state"))
WORKER_EXITS = Declaration(
    "counter",
    "headrace_worker_exits",
    "Worker processes that ended and were restarted, by cause: hung, killed or exited",
    ("model", "cause"),
)

API = (
    *(REQUESTS, REFUSALS, LIMITED, DUPLICATES, TOKENS, FIRST, BETWEEN, WHOLE, USAGE_RECORDS, OPEN_STREAMS),
    *(
        LOG_LINES_DROPPED,
        REDIS_UP,
        WAITING,
        WAITING_TOKENS,
        PAUSED,
        HELD,
        OLDEST,
        WAIT_ESTIMATE,
        WORKERS,
        WORKER_EXITS,
    ),
)
