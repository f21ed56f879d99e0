"""The KV cache is sized from the settings and the device's memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shared.errors import ConfigError
from tests.support.engine_driver import load
from workers.engine.cache_sizing import bytes_for_cache, size_cache, weight_bytes
from workers.engine.config import EngineConfig
from workers.engine.models.loader import read_model_config

GIB = 2**30


def test_weights_and_cache_fit_the_memory_share() -> None:
    assert bytes_for_cache(80 * GIB, 79 * GIB, 16 * GIB, 0.9) == 56 * GIB
    assert bytes_for_cache(80 * GIB, 40 * GIB, 16 * GIB, 0.9) == 24 * GIB, "what others use is not there"
    with pytest.raises(ConfigError, match=r"weights take 16\.0 GiB.*no room for a KV cache"):
        bytes_for_cache(16 * GIB, 16 * GIB, 16 * GIB, 0.9)


def test_cache_fills_the_free_memory_of_a_gpu(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a GPU with room for 10 blocks beside the weights, the cache has 10; kv_cache_gib is not used."""
    model, device = read_model_config(llama), torch.device("cuda")
    block = 2 * 3 * 2 * 8 * 4 * 16
    total = 2 * (weight_bytes(llama, torch.float32) + 10 * block)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (total, total))
    config = EngineConfig(llama, gpu_memory_utilization=0.5, kv_cache_gib=0.001)
    size = size_cache(config, model, torch.float32, device)
    assert (size.num_blocks, size.max_model_len) == (10, 160)


def test_weights_are_counted_in_their_loaded_dtype(llama: Path) -> None:
    stored = sum(tensor.nbytes for tensor in load_file(llama / "model.safetensors").values())
    assert weight_bytes(llama, torch.float32) == stored
    assert weight_bytes(llama, torch.bfloat16) == stored // 2


def test_number_of_full_sequences_is_logged(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(llama, num_kv_blocks=40, max_model_len=256)
    line = capsys.readouterr().out
    assert "blocks=40" in line
    assert "full_length_sequences=2.5" in line


@pytest.mark.parametrize("share", [0.0, 1.1, float("nan")])
def test_memory_share_out_of_range_is_refused(share: float, llama: Path) -> None:
    with pytest.raises(ConfigError, match="gpu_memory_utilization"):
        EngineConfig(llama, gpu_memory_utilization=share)
