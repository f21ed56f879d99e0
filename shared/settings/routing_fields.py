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
