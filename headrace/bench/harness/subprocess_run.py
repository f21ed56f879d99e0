"""One side of a comparison, in a process of its own: `python -m MODULE ARGUMENT …`, its figures as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from shared.errors import HeadraceError

LIMIT = 1800.0  # seconds
ROOT = Path(__file__).parents[3]


def run_side(module: str, *arguments: str | int, python: str = sys.executable) -> dict[str, Any]:
    """The last JSON object that the module printed. Raises HeadraceError where it fails or does not end.

    Args:
        python: the interpreter of another environment, for a peer that needs one; it finds our modules too.
    """
    command = [python, "-m", module, *map(str, arguments)]
    environment = os.environ if python == sys.executable else {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise HeadraceError(f"{module} did not end within {LIMIT:.0f} s") from None
    if done.returncode:
        raise HeadraceError(f"{module} failed: {(done.stderr.strip().splitlines() or ['silently'])[-1]}")
    objects = [line for line in done.stdout.splitlines() if line.startswith("{")]  # vLLM logs to stdout
    if not objects:
        raise HeadraceError(f"{module} printed no figures")
    figures: dict[str, Any] = json.loads(objects[-1])
    return figures
