"""Loading of an engine: its progress, and the settings that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.models.startup_progress import StartupProgress
from tests.support.engine_driver import load
from workers.engine.engine import Engine


def test_progress_ends_at_one(llama: Path) -> None:
    from workers.engine.config import EngineConfig

    shares: list[float] = []

    class Recorder(StartupProgress):
        def __call__(self, share: float) -> None:
            shares.append(share)

    progress = Recorder()
    Engine.load(EngineConfig(llama), progress)
    assert progress.seconds.keys() == {"kernels", "weights", "kv_cache"}
    assert shares == [*sorted(shares[:-1]), 1.0]


def test_unsupported_settings_are_refused(llama: Path) -> None:
    for settings, message in [
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"dtype": "int3"}, "dtype"),
        ({"device": "tpu"}, "device"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"max_model_len": 513}, "513"),
        ({"num_kv_blocks": 2, "max_model_len": 400}, "holds 32 tokens"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load(llama, **settings)
