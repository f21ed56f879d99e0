"""Response bodies of the dead letters."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from shared.dead_letters.store import DeadLetter
from shared.protocol import Embed, EncoderWork, ErrorInfo, Infer, Pool, Request, Score


class Letter(msgspec.Struct, kw_only=True):
    """A request that was set aside, the reason, and how many workers it ended; times in seconds since the epoch.

    `request` is present when one letter is requested: the body of POST /v1/jobs, or of the route of its work, for
    the same work.
    """

    id: str
    object: Literal["dead_letter"] = "dead_letter"
    tenant: str
    model: str
    priority: str
    created_at: float
    at: float
    attempts: int
    reason: ErrorInfo
    request: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def from_dead_letter(cls, letter: DeadLetter, *, with_request: bool = False) -> Letter:
        request = letter.request
        return cls(
            id=letter.id,
            tenant=request.tenant,
            model=request.named_model,
            priority=request.priority.value,
            created_at=request.created_at,
            at=letter.at,
            attempts=letter.attempts,
            reason=letter.reason,
            request=as_submitted(request) if with_request else msgspec.UNSET,
        )


class LetterList(msgspec.Struct):
    data: list[Letter]
    object: Literal["list"] = "list"


class Removed(msgspec.Struct):
    removed: int


def as_submitted(request: Request) -> dict[str, Any]:
    """Return the body that submits the request again, with its seed, but without deadline and echo."""
    if isinstance(request.work, Infer):
        return {"model": request.model, **msgspec.to_builtins(request.work)}
    if isinstance(request.work, EncoderWork):
        return {"model": request.model, **_encoder_fields(request, request.work)}
    given: dict[str, Any] = {"messages": request.messages} if request.prompt is None else {"prompt": request.prompt}
    fields = {"model": request.named_model, **given, "priority": request.priority.value}
    params = msgspec.structs.replace(request.params, echo=False)
    body: dict[str, Any] = msgspec.to_builtins(fields | msgspec.to_builtins(params))
    return body


def _encoder_fields(request: Request, work: EncoderWork) -> dict[str, Any]:
    """Return the fields of the work of POST /v1/embeddings, /pooling or /v1/score."""
    options = request.prompt_options
    fields: dict[str, Any] = {
        "use_activation": work.activation,
        "add_special_tokens": options.add_special_tokens,
        "truncate_prompt_tokens": options.truncate_prompt_tokens,
        "truncation_side": options.truncation_side if options.truncate_prompt_tokens is not None else None,
    }
    match work:
        case Score():
            fields |= {"queries": work.queries, "documents": work.documents}
            fields |= {
                "max_tokens_per_query": work.max_query_tokens,
                "max_tokens_per_doc": work.max_document_tokens,
            }
        case Pool():
            fields |= {"messages": request.messages, "task": work.task, "input": work.inputs or None}
        case Embed():
            fields |= {"input": work.inputs, "dimensions": work.dimensions}
    body: dict[str, Any] = msgspec.to_builtins({name: value for name, value in fields.items() if value is not None})
    return body
