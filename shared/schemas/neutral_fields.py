"""Fields of other servers that have no effect here, and those that are accepted only with a value that has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from shared.schemas.base import Body, refuse_unless_neutral
from shared.schemas.openapi_bounds import Short

NOT_SUPPORTED = "this server does not support this field"
Unused = Annotated[Any, Field(description="accepted, without effect")]
Unsupported = Annotated[Any, Field(description="not supported: refused unless empty or neutral")]

# vLLM's fields, with the values that change nothing
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "use_beam_search": (None, False),
    "early_stopping": (None, False),
    "detokenize": (None, True),
    "logits_processors": (None, []),
    "vllm_xargs": (None, {}),
    "kv_transfer_params": (None, {}),
    "mm_processor_kwargs": (None, {}),
}


class RequestIdField(Body):
    request_id: Short | None = Field(
        None,
        exclude=True,  # the retry of a request under its Idempotency-Key may have another id
        description="your id of this request, used as x-request-id unless the request has that header",
    )


class NeutralFields(RequestIdField):
    """Fields of requests for an answer."""

    length_penalty: Unused = None
    use_beam_search: Unsupported = None
    early_stopping: Unsupported = None
    detokenize: Unsupported = None
    logits_processors: Unsupported = None
    vllm_xargs: Unsupported = None
    kv_transfer_params: Unsupported = None
    mm_processor_kwargs: Unsupported = None

    _refuse_unless_neutral = refuse_unless_neutral(NEUTRAL, NOT_SUPPORTED)
