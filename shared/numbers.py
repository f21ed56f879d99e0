"""Numbers in texts: headers, metadata, parameters.

Python's int and float also take underscores, spaces, exponents, `nan`, and the digits of other scripts.
"""

from __future__ import annotations

import math
import re

WHOLE = re.compile(r"[0-9]{1,15}")
DECIMAL = re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?")


def whole(text: str) -> int | None:
    """Return a number of at most 15 ASCII digits; None for any other text."""
    return int(text) if WHOLE.fullmatch(text) else None


def decimal(text: str) -> float | None:
    """Return a number of ASCII digits, with decimals or without; None for any other text."""
    return float(text) if DECIMAL.fullmatch(text) else None


def finite(text: str) -> float:
    """Return a number in any of Python's spellings. Raises ValueError, also for `nan` and `inf`."""
    if not math.isfinite(number := float(text)):
        raise ValueError("not a finite number")
    return number
