"""Settings of the checks that find a worker that no longer works."""

from __future__ import annotations

from pydantic import BaseModel


class HealthFields(BaseModel):
    """Settings of the supervision of workers."""
