"""Fixture of workers in the process of a test."""

from __future__ import annotations

import pytest

from shared.backend import Backend
from shared.settings import Settings
from tests.support.worker_harness import Harness


@pytest.fixture
def harness(backend: Backend, settings: Settings) -> Harness:
    return Harness(backend, settings)
