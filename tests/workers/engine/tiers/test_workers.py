"""Through the queue: a worker loads what another one has computed for the same tenant, as its settings say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from shared.backend import Backend
from shared.settings import Settings
from tests.support.fakes import answer, make_request, submit
from tests.support.kv_tiers import Patient, loaded, settle
from tests.support.worker_harness import Harness, answer_tokens
from workers.engine.config import EngineConfig
from workers.engine.engine import Engine
from workers.engine.tiers.options import TierOptions


@pytest.mark.slow
async def test_a_second_worker_loads_the_prompts_of_its_tenant(
    backend: Backend, settings: Settings, llama: Path
) -> None:
    changes = {"kv_tier": "redis", "kv_tier_min_tokens": 16, "block_size": 4, "speculation": "off", "device": "cpu"}
    settings = settings.model_copy(update=changes)
    answers = []
    for number, tenants in enumerate((["a"], ["a", "b"])):
        engine = Engine.load(dataclasses.replace(EngineConfig.from_settings(settings, llama), num_kv_blocks=64))
        assert engine.tier is not None
        engine.tier.rates = Patient()
        async with Harness(backend, settings).worker(engine, name=f"w{number}"):
            for tenant in tenants:
                request = make_request(prompt="the mill by the river stands still", max_tokens=6, tenant=tenant)
                await submit(backend, request)
                events = await answer(backend, request.id)
                terminal = events[-1].terminal
                assert terminal is not None
                answers.append((answer_tokens(events), terminal.usage.cached_tokens))
        settle(engine)
    (first, none), (second, cached), (third, of_other) = answers
    assert first == second == third
    assert (none, cached, of_other) == (0, 32, 0)
    assert loaded(engine) == 32


def test_options_follow_from_the_settings(settings: Settings, tmp_path: Path) -> None:
    def options(**given: object) -> TierOptions:
        return EngineConfig.from_settings(settings.model_copy(update=given), tmp_path).tier

    assert options().kind == "off"
    found = options(kv_tier="disk", kv_tier_gib=0.5, kv_tier_ttl=7.0, kv_tier_min_tokens=3)
    assert (found.kind, found.size, found.ttl, found.min_tokens) == ("disk", 2**29, 7.0, 3)
    assert found.folder == settings.cache_dir / "kv-tier"
    assert found.url == settings.redis_url.get_secret_value()
    assert found.url not in repr(found)
    assert options(kv_tier_dir=tmp_path).folder == tmp_path
