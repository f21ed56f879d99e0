"""A tiny checkpoint with two adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.adapters import ATTENTION, save_adapter


@pytest.fixture(scope="session")
def adapters(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the adapters `wide`, of all linear layers, and `narrow`, of a part of the fused ones."""
    folder = tmp_path_factory.mktemp("adapters")
    save_adapter(folder / "wide", llama, rank=4, seed=1, target_modules="all-linear")
    save_adapter(folder / "narrow", llama, (*ATTENTION[::2], "up_proj"), rank=3, seed=2, use_rslora=True)
    return folder
