"""Result of one check of `headrace doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """Result of one check. `remedy` is empty if the status is ok."""

    what: str
    status: Status
    found: str
    remedy: str = ""
