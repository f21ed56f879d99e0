"""One side of a comparison, in a process of its own: `python -m MODULE MODEL SEED`, its figures as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from shared.errors import HeadraceError

LIMIT = 1800.0  # seconds


def run_side(module: str, model: str, seed: int) -> dict[str, Any]:
    """What the module printed last. Raises HeadraceError where it fails or does not end."""
    command = [sys.executable, "-m", module, model, str(seed)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        raise HeadraceError(f"{module} did not end within {LIMIT:.0f} s") from None
    if done.returncode:
        raise HeadraceError(f"{module} failed: {(done.stderr.strip().splitlines() or ['silently'])[-1]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures
