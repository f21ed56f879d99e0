"""Workers whose engines hang, with a limit that a stalled machine does not reach in one observation."""

from __future__ import annotations

import pytest

from shared.backend import Backend
from shared.settings import Settings
from tests.support.worker_harness import Harness

STEP_TIMEOUT_S = 1.0


@pytest.fixture
def harness(backend: Backend, settings: Settings) -> Harness:
    return Harness(backend, settings.model_copy(update={"step_timeout": STEP_TIMEOUT_S}))
