"""Run one side of a comparison in a separate process, `python -m MODULE ARGUMENT …`, which prints JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from shared.errors import HeadraceError

TIMEOUT_S = 1800.0
ROOT = Path(__file__).parents[3]


def run_in_subprocess(module: str, *arguments: str | int, python: str = sys.executable) -> dict[str, Any]:
    """Run a module and return the last JSON object it printed. Raises HeadraceError if it fails or does not end.

    Args:
        python: interpreter of another environment, for peers that need one. This repository is on its path.
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
            timeout=TIMEOUT_S,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise HeadraceError(f"{module} did not end within {TIMEOUT_S:.0f} s") from None
    if done.returncode:
        raise HeadraceError(f"{module} failed: {(done.stderr.strip().splitlines() or ['silently'])[-1]}")
    objects = [line for line in done.stdout.splitlines() if line.startswith("{")]  # vLLM logs to stdout
    if not objects:
        raise HeadraceError(f"{module} printed no figures")
    figures: dict[str, Any] = json.loads(objects[-1])
    return figures
