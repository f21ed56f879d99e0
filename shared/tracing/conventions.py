"""Names of all spans, their attributes and events. None holds a text of a caller or of a model.

References: OpenTelemetry semantic conventions for HTTP, RPC and messaging; for generative AI, version 0.1.0.
`gen_ai.latency.*` are vLLM's names, `headrace.*` our own.
"""

from __future__ import annotations

from collections.abc import Mapping

from shared.protocol import Embed, Infer, Pool, Request, Score, Terminal
from shared.tracing.interface import Kind, SpanStart, Value

ERROR_TYPE = "error.type"
FIRST_TOKEN = "first_token"  # noqa: S105  an event
PROVIDER = "headrace"
METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
RPC_STATUS = "rpc.response.status_code"
OPERATIONS = {Embed: "embeddings", Pool: "pool", Score: "score", Infer: "infer"}


# the API


def http_span(method: str, route: str) -> SpanStart:
    """Return the start of an HTTP request; `route` is a template, empty for an unknown path.

    The path and the query are left out: a client may have written anything there.
    """
    known = method in METHODS
    attributes = {"http.request.method": method if known else "_OTHER", "url.scheme": "http"}
    if route:
        attributes["http.route"] = route
    return SpanStart(f"{method if known else 'HTTP'} {route}".rstrip(), Kind.SERVER, attributes)


def rpc_span(method: str) -> SpanStart:
    """Return the start of a gRPC call; `method` is the full name."""
    name = method.removeprefix("/")
    return SpanStart(name, Kind.SERVER, {"rpc.system.name": "grpc", "rpc.method": name})


def served(*, job_id: str, model: str, tenant: str, priority: str, http_request_id: str) -> dict[str, Value]:
    """Return what handling a request found out; empty where it did not come so far."""
    found = {
        "headrace.http_request.id": http_request_id,
        "headrace.job.id": job_id,
        "headrace.tenant": tenant,
        "headrace.priority": priority,
        "gen_ai.request.model": model,
    }
    return {name: value for name, value in found.items() if value}


def http_status(status: int) -> dict[str, Value]:
    """Return the status of a response; empty if the client left before it."""
    return {"http.response.status_code": status} if status else {}


# the queue


def send_span(request: Request, system: str) -> SpanStart:
    """Return the start of putting a request into its queue."""
    return SpanStart(f"send {request.model}", Kind.PRODUCER, _message("send", request, system))


def take_record_span(request: Request, topic: str, partition: int, offset: int) -> SpanStart:
    """Return the start of moving the request of a Kafka record into its queue."""
    attributes = {
        **_message("process", request, "kafka"),
        "messaging.destination.name": topic,
        "messaging.destination.partition.id": str(partition),
        "messaging.kafka.offset": offset,
    }
    return SpanStart(f"process {topic}", Kind.CONSUMER, attributes)


def process_span(request: Request, *, run_id: str, worker: str, attempt: int) -> SpanStart:
    """Return the start of one run of a request, on one worker."""
    attributes = {
        **_message("process", request, "redis"),
        "headrace.run.id": run_id,
        "headrace.worker.id": worker,
        "headrace.attempt": attempt,
        "headrace.tenant": request.tenant,
        "headrace.priority": request.priority.value,
    }
    return SpanStart(f"process {request.model}", Kind.CONSUMER, attributes)


def outcome(name: str) -> dict[str, Value]:
    """Return how a run ended: completed, failed, cancelled, lease_lost, handed_over or engine_hung."""
    return {"headrace.outcome": name}


def _message(operation: str, request: Request, system: str) -> dict[str, Value]:
    return {
        "messaging.system": system,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": request.model,
        "messaging.message.id": request.id,
        "headrace.job.id": request.id,
    }


# the model


def inference_span(request: Request) -> SpanStart:
    """Return the start of computing an answer. Stop strings are left out: they are the client's text."""
    if request.work is None:
        operation = "text_completion" if request.messages is None else "chat"
    else:
        operation = OPERATIONS.get(type(request.work), "other")
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": request.model,
    }
    if request.work is None:
        attributes |= _sampling(request)
    elif isinstance(request.work, Embed) and request.work.dimensions is not None:
        attributes["gen_ai.embeddings.dimension.count"] = request.work.dimensions
    return SpanStart(f"{operation} {request.model}", Kind.INTERNAL, attributes)


def _sampling(request: Request) -> dict[str, Value]:
    params = request.params
    found: dict[str, Value] = {
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.frequency_penalty": params.frequency_penalty,
        "gen_ai.request.presence_penalty": params.presence_penalty,
        "gen_ai.request.seed": params.seed,
    }
    if params.max_tokens is not None:
        found["gen_ai.request.max_tokens"] = params.max_tokens
    if params.top_k > 0:
        found["gen_ai.request.top_k"] = float(params.top_k)
    if params.n != 1:
        found["gen_ai.request.choice.count"] = params.n
    shape = params.structured_outputs
    if shape is not None and (shape.json_schema is not None or shape.json_object):
        found["gen_ai.output.type"] = "json"
    return found


def latency(name: str, seconds: float) -> dict[str, Value]:
    """Return a latency: time_in_queue, time_to_first_token or e2e."""
    return {f"gen_ai.latency.{name}": round(seconds, 6)}


def answered(request: Request, terminal: Terminal, finish_reasons: Mapping[int, str]) -> dict[str, Value]:
    """Return what is known of an answer at its end; `finish_reasons` are those of its choices."""
    usage = terminal.usage
    found: dict[str, Value] = {
        "gen_ai.response.id": request.id,
        "gen_ai.response.model": request.model,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
    }
    if usage.reasoning_tokens:
        found["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens
    if finish_reasons:
        found["gen_ai.response.finish_reasons"] = [finish_reasons[choice] for choice in sorted(finish_reasons)]
    return found
