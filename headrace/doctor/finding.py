"""One thing that `headrace doctor` looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """What was looked at and what was found; `remedy` where it is not ok."""

    what: str
    status: Status
    found: str
    remedy: str = ""
