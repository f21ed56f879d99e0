"""Plans: named sets of rate limits, as the settings define them."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

WINDOW = re.compile(r"[1-9]\d{0,11}/([1-9]\d{0,3} )?(second|minute|hour|day)s?")
MAX_WINDOWS = 4


def _windows(text: str) -> str:
    parts = [part.strip() for part in text.split(";")] if text else []
    if len(parts) > MAX_WINDOWS:
        raise ValueError(f"must have at most {MAX_WINDOWS} windows, got {len(parts)}")
    for part in parts:
        if not WINDOW.fullmatch(part):
            raise ValueError("must be windows such as 10/second; 1000/5 minutes; 100000/day")
    return ";".join(parts)


Windows = Annotated[str, AfterValidator(_windows)]  # "" means no limit


class Plan(BaseModel):
    """Limits for one key; a field that is not set has no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: Windows = ""
    tokens: Windows = ""
    concurrent: int | None = Field(None, ge=1)
    tokens_per_day: int | None = Field(None, ge=1)


def from_json(given: Any) -> Any:
    """Decode a value from an environment variable, which is text."""
    if isinstance(given, str):
        try:
            return json.loads(given)
        except json.JSONDecodeError as error:
            raise ValueError(f"must be JSON: {error.msg}") from None
    return given


PlanName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Plans = Annotated[dict[PlanName, Plan], BeforeValidator(from_json)]
