"""Settings of the checks that find a worker that no longer works."""

from __future__ import annotations

from pydantic import BaseModel, Field


class HealthFields(BaseModel):
    """Settings of the supervision of workers."""

    step_timeout: float = Field(
        4,
        ge=0,
        le=3600,
        description="seconds after which a worker is replaced if its engine neither computes nor ends its step, or "
        "if the whole process does not respond; 0: never",
    )
    canary_interval: float = Field(
        0,
        ge=0,
        le=86_400,
        description="seconds without requests after which a worker computes one token to prove that its engine "
        "works, and is replaced if that fails; 0: never",
    )
