"""Plans: named sets of limits, as the settings give them. It knows neither who has one nor how one is counted."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

WINDOW = re.compile(r"[1-9]\d{0,11}/([1-9]\d{0,3} )?(second|minute|hour|day)s?")
MOST_WINDOWS = 4


def _windows(text: str) -> str:
    parts = [part.strip() for part in text.split(";")] if text else []
    if len(parts) > MOST_WINDOWS:
        raise ValueError(f"at most {MOST_WINDOWS} windows are allowed")
    for part in parts:
        if not WINDOW.fullmatch(part):
            raise ValueError("must be windows as in 10/second; 1000/5 minutes; 100000/day")
    return ";".join(parts)


Windows = Annotated[str, AfterValidator(_windows)]  # "" is no limit


class Plan(BaseModel):
    """What one key may use; what is not given has no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: Windows = ""
    tokens: Windows = ""
    concurrent: int | None = Field(None, ge=1)
    tokens_per_day: int | None = Field(None, ge=1)


def _from_json(given: Any) -> Any:
    """A variable of the environment is text."""
    if isinstance(given, str):
        try:
            return json.loads(given)
        except json.JSONDecodeError as error:
            raise ValueError(f"is not JSON: {error.msg}") from None
    return given


PlanName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Plans = Annotated[dict[PlanName, Plan], BeforeValidator(_from_json)]
