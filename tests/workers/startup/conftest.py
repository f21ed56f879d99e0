"""Tiny checkpoint for tests of the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.checkpoints import CONFIGS, save_checkpoint


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("llama"), CONFIGS["llama"])
