"""Engines with a KV tier, rates that do not depend on the machine's speed, and stores of each kind."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.protocol import SamplingParams
from tests.support.engine_driver import load
from tests.support.waiting import LIMIT_S
from workers.engine.engine import Engine
from workers.engine.interface import EngineRequest
from workers.engine.stats import TierStats
from workers.engine.tiers.options import TierOptions

MIN_TOKENS = 8
PROMPT = tuple(random.Random(3).choices(range(256), k=50))
SAMPLED = SamplingParams(temperature=1.3, top_p=0.95, seed=7, max_tokens=20, ignore_eos=True)
SAMPLED_REQUEST = EngineRequest("r", PROMPT, SAMPLED)


class Patient:
    """Rates by which each sequence waits for the store until it has answered."""

    def note_step(self, rows: int, seconds: float) -> None: ...

    def note_lookup(self, seconds: float) -> None: ...

    def note_load(self, tokens: int, seconds: float) -> None: ...

    def lookup_limit(self, tokens: int) -> float | None:
        return LIMIT_S

    def load_limit(self, tokens: int, before: int) -> float | None:
        return LIMIT_S

    def saving_pays(self) -> bool:
        return True

    def tries(self) -> bool:
        return False


def load_tiered(folder: Path, tier: TierOptions, **settings: Any) -> Engine:
    """Return an engine with small blocks and a KV tier that it waits for."""
    engine = load(folder, **{"block_size": 4, **settings}, tier=tier)
    assert engine.tier is not None
    engine.tier.rates = Patient()
    engine._runner.cache.fill_(7.0)  # it may have the memory, and so the blocks, of an engine before it
    return engine


def settle(engine: Engine) -> None:
    """Wait until all blocks are saved."""
    until(lambda: not tier_stats(engine).pending)


def loaded(engine: Engine) -> int:
    """Return how many tokens were loaded from the tier."""
    return tier_stats(engine).hits


def tier_stats(engine: Engine) -> TierStats:
    assert engine.tier is not None
    return engine.tier.stats()


def until(condition: Callable[[], object]) -> None:
    """Wait until another thread has got as far."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not hold within {LIMIT_S} s"
        time.sleep(0.001)
