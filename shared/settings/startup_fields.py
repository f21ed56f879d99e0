"""Settings of the start of a worker: what happens before it is ready."""

from __future__ import annotations

from pydantic import BaseModel


class StartupFields(BaseModel):
    """Settings of a worker's start."""
