"""The tree of errors that a caller may see, on any transport.

Each class carries its stable code, its HTTP and gRPC status and whether a retry can help. It does not know how an
API words an error: the front end turns one into an OpenAI error object or an RFC 9457 problem.
"""

from __future__ import annotations

from typing import ClassVar


class HeadraceError(Exception):
    """Base of all errors meant for callers.

    Args:
        message: one sentence for the caller, free of prompt text.
        param: the request field at fault, if one is.
        retry_after: seconds after which a retry may succeed, if known.
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


class InvalidRequest(HeadraceError):
    """A field is missing, malformed or out of range."""

    code = "invalid_request"
    status = 400
    grpc_status = "INVALID_ARGUMENT"


class MalformedBody(InvalidRequest):
    """The body is not what its content type says."""

    code = "malformed_body"


class ContextLengthExceeded(InvalidRequest):
    """Prompt and answer together do not fit the model's context."""

    code = "context_length_exceeded"


class Unauthenticated(HeadraceError):
    """The server asks for an API key or a token, and none came."""

    code = "unauthenticated"
    status = 401
    grpc_status = "UNAUTHENTICATED"


class InvalidApiKey(Unauthenticated):
    """The API key or token that came is none, or counts no more."""

    code = "invalid_api_key"


class TooManyFailures(HeadraceError):
    """The client's address sent wrong credentials too often."""

    code = "too_many_failures"
    status = 429
    grpc_status = "RESOURCE_EXHAUSTED"


class PermissionDenied(HeadraceError):
    """The caller is known, and may not do this."""

    code = "permission_denied"
    status = 403
    grpc_status = "PERMISSION_DENIED"


class HostNotAllowed(HeadraceError):
    """The server does not answer to the name in the Host header."""

    code = "host_not_allowed"
    status = 403
    grpc_status = "PERMISSION_DENIED"


class OriginNotAllowed(HeadraceError):
    """A page of another site sent it, and nobody is asked for a key."""

    code = "origin_not_allowed"
    status = 403
    grpc_status = "PERMISSION_DENIED"


class NotFound(HeadraceError):
    """No such resource, or not the caller's."""

    code = "not_found"
    status = 404
    grpc_status = "NOT_FOUND"


class ModelNotFound(NotFound):
    """No worker serves, or has lately served, a model of that name."""

    code = "model_not_found"


class MethodNotAllowed(HeadraceError):
    """The route exists, but not for this method."""

    code = "method_not_allowed"
    status = 405
    grpc_status = "UNIMPLEMENTED"


class Conflict(HeadraceError):
    """The resource's state does not allow this."""

    code = "conflict"
    status = 409
    grpc_status = "FAILED_PRECONDITION"


class PayloadTooLarge(HeadraceError):
    """The body is over the limit."""

    code = "payload_too_large"
    status = 413
    grpc_status = "RESOURCE_EXHAUSTED"


class HeaderTooLarge(HeadraceError):
    """The request's line and headers are over the limit."""

    code = "header_too_large"
    status = 431
    grpc_status = "RESOURCE_EXHAUSTED"


class StorageFull(HeadraceError):
    """There is no room for the file on the server."""

    code = "storage_full"
    status = 507
    grpc_status = "RESOURCE_EXHAUSTED"


class TooManyBatches(HeadraceError):
    """As many batches are open as may be."""

    code = "too_many_batches"
    status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    retryable = True


class UnsupportedMediaType(HeadraceError):
    """The body is of another type than the route takes."""

    code = "unsupported_media_type"
    status = 415
    grpc_status = "INVALID_ARGUMENT"


class QueueFull(HeadraceError):
    """The model's queue is at its bound."""

    code = "queue_full"
    status = 503
    grpc_status = "RESOURCE_EXHAUSTED"
    retryable = True


class TenantQueueFull(HeadraceError):
    """The caller's own share of the model's queue is used up."""

    code = "tenant_queue_full"
    status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    retryable = True


class RateLimited(HeadraceError):
    """A limit of the caller's plan, of its user or of its address is used up for now."""

    code = "rate_limit_exceeded"
    status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    retryable = True


class ExceedsRateLimit(RateLimited):
    """The request alone is more than a limit ever allows."""

    code = "request_exceeds_limit"
    retryable = False


class QuotaExceeded(HeadraceError):
    """The key's tokens of the day are used up."""

    code = "insufficient_quota"
    status = 429
    grpc_status = "RESOURCE_EXHAUSTED"


class IdempotencyKeyReused(HeadraceError):
    """The Idempotency-Key came before, with another body."""

    code = "idempotency_key_reused"
    status = 422
    grpc_status = "FAILED_PRECONDITION"


class DeadlineExceeded(HeadraceError):
    """The request's time was over before its answer was whole."""

    code = "deadline_exceeded"
    status = 504
    grpc_status = "DEADLINE_EXCEEDED"


class Unavailable(HeadraceError):
    """A part that the server needs (Redis, a worker) cannot be reached."""

    code = "unavailable"
    status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True


class EngineFailed(HeadraceError):
    """The engine could not go on with this request."""

    code = "engine_failed"


class RequestAbandoned(HeadraceError):
    """The request lost its worker too often and was set aside."""

    code = "request_abandoned"


class RequestLost(HeadraceError):
    """The store lost the request's place in the queue or a part of its answer, or another program deleted it."""

    code = "request_lost"
    status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True


class ConfigError(HeadraceError):
    """A setting is wrong; the message says which, and what would be right."""

    code = "config_error"


def error_classes() -> dict[str, type[HeadraceError]]:
    """Every error class by its code, so that a stored error can be raised again as what it was."""
    found: dict[str, type[HeadraceError]] = {}
    pending = [HeadraceError]
    while pending:
        cls = pending.pop()
        found.setdefault(cls.code, cls)  # a subclass without a code of its own is its parent to others
        pending.extend(cls.__subclasses__())
    return found
