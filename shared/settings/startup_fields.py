"""Settings of the start of a worker: what happens before it is ready."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from shared.settings.scaling_fields import ScalingFields


class StartupFields(ScalingFields):
    """Settings of a worker's start, and of how many workers a model needs."""

    warmup_requests: Path | None = Field(
        None,
        description="JSON Lines file of requests that a worker runs before it is ready, each a body of "
        "/v1/chat/completions (with `messages`), /v1/completions (with `prompt`) or /v1/embeddings (with `input`); "
        "default: one short request",
    )
    shared_weights: bool | None = Field(
        None,
        description="keep the weights, as the C++ kernels need them, in a file in `cache_dir` that all workers of "
        "a machine map, so that they have one copy in memory; default: if `workers` is above 1",
    )
    min_workers: int = Field(
        0,
        ge=0,
        le=64,
        description="ready workers that `model` needs before `/ready` returns 200, at least one; above 0, the "
        "model cannot be put to sleep",
    )
