"""Every runtime of this environment keeps the contract of runtimes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.settings import Settings, load
from tests.support.fake_upstream import serving
from tests.support.runtime_contract import RuntimeContract, StopContract
from tests.support.runtime_driver import RuntimeDriver


class TestScripted(RuntimeContract):
    @pytest.fixture(scope="class")
    @classmethod
    def runtime(cls) -> Iterator[RuntimeDriver]:
        with RuntimeDriver.of(load({"model": "scripted"}).settings) as driver:
            yield driver


class TestNative(RuntimeContract, StopContract):
    @pytest.fixture(scope="class")
    @classmethod
    def runtime(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeDriver]:
        from tests.support.checkpoints import CONFIGS, save_checkpoint  # imports torch

        folder: Path = save_checkpoint(tmp_path_factory.mktemp("tiny"), CONFIGS["llama"])
        with RuntimeDriver.of(load({"model": str(folder), "kv_cache_gib": 0.05}).settings) as driver:
            yield driver


def upstream_settings(url: str, **given: object) -> Settings:
    return load({"runtime": "upstream", "upstream_url": url, "upstream_model": "fake", **given}).settings


@pytest.mark.parametrize("resume", ["restart", "continue"], scope="class")
class TestUpstream(RuntimeContract, StopContract):
    @pytest.fixture(scope="class")
    @classmethod
    def runtime(cls, resume: str) -> Iterator[RuntimeDriver]:
        with serving() as server:
            server.owned_by = "vllm" if resume == "continue" else "other"
            settings = upstream_settings(server.url, upstream_resume=resume, max_model_len=5000)
            with RuntimeDriver.of(settings) as driver:
                yield driver
