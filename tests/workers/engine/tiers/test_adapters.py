"""Blocks in a KV tier belong to the adapter that computed them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.adapters import save_adapter
from tests.support.engine_driver import drain, load
from tests.support.kv_tiers import PROMPT, SAMPLED, load_tiered, loaded, settle
from workers.engine.engine import Engine
from workers.engine.interface import EngineRequest
from workers.engine.tiers.options import TierOptions


@pytest.mark.slow
def test_blocks_of_an_adapter_are_found_by_its_contents_alone(llama: Path, tmp_path: Path) -> None:
    """Given one prompt without an adapter, with two, and with one whose files were replaced in place."""
    folder = tmp_path / "lora"
    for seed, name in enumerate("ab"):
        save_adapter(folder / name, llama, seed=seed)
    tier = TierOptions("disk", 2**26, tmp_path / "tier", ttl=600, min_tokens=8)
    alone, first = load(llama, lora_dir=folder), load_tiered(llama, tier, lora_dir=folder)
    expected = {name: ids(alone, name) for name in (None, "a", "b")}
    assert len(set(map(tuple, expected.values()))) == 3
    for name in (None, "a", "b"):
        assert ids(first, name) == expected[name]
        assert loaded(first) == 0, "the blocks of another adapter"
        settle(first)
    second = load_tiered(llama, tier, lora_dir=folder)
    for number, name in enumerate(("b", "a", None), 1):
        assert ids(second, name) == expected[name]
        assert loaded(second) == number * 48
    shutil.rmtree(folder / "a")
    shutil.copytree(folder / "b", folder / "a")
    assert ids(second, "a") == expected["b"]
    assert loaded(second) == 3 * 48, "they are in the cache, from b"


def ids(engine: Engine, name: str | None) -> list[int]:
    assert engine.adapters is not None
    weights = None if name is None else engine.adapters.load(name)
    engine.add(EngineRequest("r", PROMPT, SAMPLED, adapter=weights))
    return drain(engine).ids("r")
