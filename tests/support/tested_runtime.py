"""Runtime that the tests of a real model run on: Headrace's own, or vLLM in the environment that TEST_VLLM names.

`scripts/test-vllm` sets it to the Python interpreter of that environment.
"""

from __future__ import annotations

import json
import os
from typing import Any

from tests.support.waiting import LIMIT_S

VLLM_PYTHON = os.environ.get("TEST_VLLM")
# compiling takes a minute, and computes the same; a short prompt fills a block of this size
OPTIONS = {"enforce_eager": True, "block_size": 32}
# vLLM compiles its log-probabilities in the first start of a machine, which takes minutes on busy cores
START_LIMIT_S = 900.0 if VLLM_PYTHON else LIMIT_S


def runtime_settings() -> dict[str, Any]:
    """Return the settings that choose the runtime."""
    if VLLM_PYTHON is None:
        return {}
    return {"runtime": "vllm", "worker_python": VLLM_PYTHON, "vllm_options": json.dumps(OPTIONS)}
