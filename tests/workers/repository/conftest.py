"""Fixture of hosts in the process of a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.backend import Backend
from shared.settings import Settings
from tests.support.model_repository import HostHarness, Multipliers


@pytest.fixture
def hosts(backend: Backend, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostHarness:
    """Hosts of a repository whose models are multipliers."""
    root, module = tmp_path / "repository", Multipliers()
    root.mkdir()
    monkeypatch.setattr("workers.repository.serving.predictor_serving.module_for", lambda spec: module)
    changes = {"model_repository": root, "repository_poll": 0.1, "model_memory": "1000"}
    return HostHarness(root, settings.model_copy(update=changes), backend, module)
