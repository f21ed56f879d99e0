"""Checkpoint whose heads can be divided among four ranks, with fewer key-value heads than ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from tests.support.checkpoints import SHAPE, save_checkpoint


@pytest.fixture(scope="session")
def eight_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {**SHAPE, "num_attention_heads": 8, "vocab_size": 270}  # a vocabulary that four does not divide
    config = LlamaConfig(**shape, attention_bias=True, mlp_bias=True, head_dim=16)
    return save_checkpoint(tmp_path_factory.mktemp("eight_heads"), config)


@pytest.fixture(autouse=True, scope="package")
def _threads() -> Iterator[None]:
    """Restore the number of threads, which an engine with several ranks divides."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
