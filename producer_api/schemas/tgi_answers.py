"""Answers of TGI's API.

Reference: text-generation-inference, router/src/lib.rs.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

TgiFinishReason = Literal["length", "eos_token", "stop_sequence"]


class PrefillToken(msgspec.Struct):
    """Token of a prompt; `logprob` is null for the first one, which nothing precedes."""

    id: int
    text: str
    logprob: float | None


class GeneratedToken(msgspec.Struct):
    """Token of an answer; `logprob` is null where the server that executes the model does not say it."""

    id: int
    text: str
    logprob: float | None
    special: bool


class BestOfSequence(msgspec.Struct, kw_only=True):
    """One of several answers that was not the best; `seed` is null unless tokens were drawn at random."""

    generated_text: str
    finish_reason: TgiFinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[GeneratedToken]
    top_tokens: list[list[GeneratedToken]] | UnsetType = UNSET


class GenerationDetails(msgspec.Struct, kw_only=True):
    finish_reason: TgiFinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[GeneratedToken]
    best_of_sequences: list[BestOfSequence] | UnsetType = UNSET
    top_tokens: list[list[GeneratedToken]] | UnsetType = UNSET


class Generation(msgspec.Struct):
    generated_text: str
    details: GenerationDetails | UnsetType = UNSET


class StreamDetails(msgspec.Struct):
    finish_reason: TgiFinishReason
    generated_tokens: int
    seed: int | None
    input_length: int


class GenerationChunk(msgspec.Struct):
    """One token of a stream; the last has the whole text, and the details if they were asked for."""

    index: int
    token: GeneratedToken
    top_tokens: list[GeneratedToken] | UnsetType = UNSET
    generated_text: str | None = None
    details: StreamDetails | None = None


class TokenSpan(msgspec.Struct):
    """Token of a text, from byte `start` to `stop`; empty for one that the tokenizer added."""

    id: int
    text: str
    start: int
    stop: int


class TokenizedChat(msgspec.Struct):
    tokenize_response: list[TokenSpan]
    templated_text: str


class ServerInfo(msgspec.Struct, kw_only=True):
    """The served model, and bounds on requests; those on tokens are 0 until a worker has loaded the model."""

    model_id: str
    model_sha: str | None = None
    model_pipeline_tag: str | None
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    validation_workers: int
    max_client_batch_size: int
    router: str = "headrace"
    version: str
    sha: str | None = None
    docker_label: str | None = None
