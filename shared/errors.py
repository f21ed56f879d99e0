"""The tree of errors that a caller may see, on any transport.

Each class has a stable code, an HTTP and a gRPC status, and says whether a retry can help. The front end turns an
error into an OpenAI error object or an RFC 9457 problem.
"""

from __future__ import annotations

from typing import ClassVar


class HeadraceError(Exception):
    """Base of all errors meant for callers.

    Args:
        message: one sentence for the caller, without prompt text.
        param: the request field at fault, if there is one.
        retry_after: seconds after which a retry may succeed, if known.

    Attributes:
        details: more fields of the error object, with numbers.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.details: dict[str, float] = {}


class InvalidRequest(HeadraceError):
    """A field is missing, malformed or out of range."""

    code = "invalid_request"
    status = 400
    grpc_status = "INVALID_ARGUMENT"


class MalformedBody(InvalidRequest):
    """The body does not match its content type."""

    code = "malformed_body"


class ContextLengthExceeded(InvalidRequest):
    """Prompt and answer together exceed the model's context."""

    code = "context_length_exceeded"


class Unauthenticated(HeadraceError):
    """The server requires an API key or a token, and the request has none."""

    code = "unauthenticated"
    status = 401
    grpc_status = "UNAUTHENTICATED"


class InvalidApiKey(Unauthenticated):
    """The API key or token is unknown, malformed, expired or revoked."""

    code = "invalid_api_key"


class TooManyFailures(HeadraceError):
    """The client's address sent invalid credentials too often."""

    code = "too_many_failures"
    status = 429
    grpc_status = "RESOURCE_EXHAUSTED"


class PermissionDenied(HeadraceError):
    """The caller is authenticated but not allowed to do this."""

    code = "permission_denied"
    status = 403
    grpc_status = "PERMISSION_DENIED"


class HostNotAllowed(HeadraceError):
    """The name in the Host header is not one of the server's."""

    code = "host_not_allowed"
    status = 403
    grpc_status = "PERMISSION_DENIED"


class OriginNotAllowed(HeadraceError):
    """A page of another site sent the request, and the server requires no key."""

    code = "origin_not_allowed"
    status = 403
    grpc_status = "PERMISSION_DENIED"


class NotFound(HeadraceError):
    """The resource does not exist, or belongs to another tenant."""

    code = "not_found"
    status = 404
    grpc_status = "NOT_FOUND"


class ModelNotFound(NotFound):
    """No worker serves a model of that name, or recently served one."""

    code = "model_not_found"


class VersionNotFound(NotFound):
    """The model has no ready version of that number."""

    code = "version_not_found"


class MethodNotAllowed(HeadraceError):
    """The route does not support this method."""

    code = "method_not_allowed"
    status = 405
    grpc_status = "UNIMPLEMENTED"


class NotSupported(HeadraceError):
    """The protocol has this, and the server does not; the message names it."""

    code = "not_supported"
    status = 501
    grpc_status = "UNIMPLEMENTED"


class Conflict(HeadraceError):
    """The state of the resource does not allow this."""

    code = "conflict"
    status = 409
    grpc_status = "FAILED_PRECONDITION"


class PayloadTooLarge(HeadraceError):
    """The body exceeds the size limit."""

    code = "payload_too_large"
    status = 413
    grpc_status = "RESOURCE_EXHAUSTED"


class HeaderTooLarge(HeadraceError):
    """The request line and headers exceed the size limit."""

    code = "header_too_large"
    status = 431
    grpc_status = "RESOURCE_EXHAUSTED"


class StorageFull(HeadraceError):
    """The server has no space left for the file."""

    code = "storage_full"
    status = 507
    grpc_status = "RESOURCE_EXHAUSTED"


class TooManyBatches(HeadraceError):
    """The number of unfinished batches is at its limit."""

    code = "too_many_batches"
    status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    retryable = True


class UnsupportedMediaType(HeadraceError):
    """The route does not accept the body's content type."""

    code = "unsupported_media_type"
    status = 415
    grpc_status = "INVALID_ARGUMENT"


class ModelUnavailable(HeadraceError):
    """The model is known, but cannot be loaded at present, or its unloading was ordered."""

    code = "model_unavailable"
    status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True


class QueueFull(HeadraceError):
    """The model's queue is full."""

    code = "queue_full"
    status = 503
    grpc_status = "RESOURCE_EXHAUSTED"
    retryable = True


class TenantQueueFull(HeadraceError):
    """The caller's share of the model's queue is full."""

    code = "tenant_queue_full"
    status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    retryable = True


class TargetUnreachable(HeadraceError):
    """The first token is not expected by the request's target, and the caller prefers a refusal to a late answer.

    It is not retryable: a client that waited for Retry-After unasked would miss the target.
    """

    code = "target_unreachable"
    status = 503
    grpc_status = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, *, estimated_wait: float, retry_after: float) -> None:
        super().__init__(message, retry_after=retry_after)
        self.details = {"estimated_wait": estimated_wait}


class QueueDraining(QueueFull):
    """An operator drains the model's queue: it takes no new requests until it is opened again."""

    code = "queue_draining"
    grpc_status = "UNAVAILABLE"


class TenantQueueDraining(TenantQueueFull):
    """An operator drains the caller's share of the model's queue."""

    code = "tenant_queue_draining"
    status = 503
    grpc_status = "UNAVAILABLE"


class RateLimited(HeadraceError):
    """A rate limit of the caller's plan, user or address is used up for now."""

    code = "rate_limit_exceeded"
    status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    retryable = True


class ExceedsRateLimit(RateLimited):
    """The request alone exceeds a rate limit."""

    code = "request_exceeds_limit"
    retryable = False


class QuotaExceeded(HeadraceError):
    """The key's tokens for the day are used up."""

    code = "insufficient_quota"
    status = 429
    grpc_status = "RESOURCE_EXHAUSTED"


class IdempotencyKeyReused(HeadraceError):
    """The Idempotency-Key was already used with another body."""

    code = "idempotency_key_reused"
    status = 422
    grpc_status = "FAILED_PRECONDITION"


class DeadlineExceeded(HeadraceError):
    """The request's deadline passed before its answer was complete."""

    code = "deadline_exceeded"
    status = 504
    grpc_status = "DEADLINE_EXCEEDED"


class Unavailable(HeadraceError):
    """A component that the server needs (Redis, a worker) cannot be reached."""

    code = "unavailable"
    status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True


class QueueTimeout(Unavailable):
    """The request waited longer than the model's queue policy allows."""

    code = "queue_timeout"


class EngineFailed(HeadraceError):
    """The engine could not compute this request."""

    code = "engine_failed"


class UpstreamFailed(HeadraceError):
    """The server that executes the model did not give a usable answer within the allowed attempts."""

    code = "upstream_failed"
    status = 502
    grpc_status = "UNAVAILABLE"
    retryable = True


class UpstreamRefused(UpstreamFailed):
    """The server that executes the model does not serve this worker: its key, address or model is wrong."""

    code = "upstream_refused"
    grpc_status = "FAILED_PRECONDITION"
    retryable = False


class RequestAbandoned(HeadraceError):
    """The request lost too many workers and became a dead letter."""

    code = "request_abandoned"


class RequestLost(HeadraceError):
    """Redis lost, or another program deleted, the request's place in the queue or a part of its answer."""

    code = "request_lost"
    status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True


class ConfigError(HeadraceError):
    """A setting is invalid; the message says which one, and what is allowed."""

    code = "config_error"


def error_classes() -> dict[str, type[HeadraceError]]:
    """Return every error class by its code, so that a stored error can be raised again."""
    found: dict[str, type[HeadraceError]] = {}
    pending = [HeadraceError]
    while pending:
        cls = pending.pop()
        found.setdefault(cls.code, cls)  # a subclass without a code of its own appears as its parent
        pending.extend(cls.__subclasses__())
    return found
