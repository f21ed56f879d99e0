"""Settings of routing: which worker takes a request."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from shared.plans import from_json

PolicyName = Literal[
    "pull",
    "round-robin",
    "weighted-round-robin",
    "least-connections",
    "consistent-hash",
    "fastest-response",
    "prefix-aware",
]
RoutingKey = Literal["session", "user", "prefix"]


class RoutingFields(BaseModel):
    """Settings of the policies that choose a worker for a request."""

    routing: PolicyName = Field(
        "pull",
        description="which worker takes a request; pull: whichever has room; the other policies choose one, which "
        "the request returns to all workers from if that one is lost, drains or lags",
    )
    model_routing: Annotated[dict[str, PolicyName], BeforeValidator(from_json)] = Field(
        {},
        description="policies of single models that differ from `routing`, as in `[model_routing]` with `chat = "
        '"prefix-aware"`; JSON in the environment',
    )
    routing_weight: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="this worker's share under weighted-round-robin, relative to the other workers of its model; "
        "default: its measured tokens/s",
    )
    routing_key: RoutingKey = Field(
        "session",
        description="what consistent-hash keeps on one worker; session: the turns of a chat, which begin with "
        "the same messages up to the first of the user; user: requests with the same `user`, or of one session if "
        "it is not set; prefix: requests that begin with the same 1024 bytes of text",
    )
    routing_load_bound: float = Field(
        1.5,
        ge=1,
        le=1000,
        description="under consistent-hash and prefix-aware, a worker with more than this times the mean tokens in "
        "flight gets no further requests",
    )
    routing_patience: float = Field(
        0.5,
        ge=0,
        le=3600,
        description="seconds that a request waits for the worker chosen for it while another has room; then that "
        "one takes it",
    )
