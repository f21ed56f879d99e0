"""Settings that bound what one request may ask for, with TGI's names."""

from __future__ import annotations

from pydantic import BaseModel, Field

MAX_CLIENT_BATCH_SIZE = 64


class LengthFields(BaseModel):
    """Settings that the API and the workers read; the bounds on tokens are those of generating models."""

    max_input_length: int | None = Field(
        None, ge=1, description="maximum tokens of a prompt; default: what the model's context leaves room for"
    )
    max_total_tokens: int | None = Field(
        None,
        ge=2,
        description="maximum tokens of prompt and answer together; a request is refused if the prompt leaves less "
        "than its `max_tokens` and less than 1024, otherwise `max_tokens` is lowered; default: the model's context",
    )
    max_best_of: int = Field(2, ge=1, le=128, description="maximum `best_of` in TGI's API; `max_n` bounds it too")
    max_stop_sequences: int = Field(4, ge=0, le=16, description="maximum number of `stop` strings in TGI's API")
    max_client_batch_size: int = Field(
        MAX_CLIENT_BATCH_SIZE,
        ge=1,
        le=MAX_CLIENT_BATCH_SIZE,
        description="maximum prompts in one HTTP request",
    )
