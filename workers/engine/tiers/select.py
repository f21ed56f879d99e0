"""The choice of an engine's KV tier and scheduler; without a tier, nothing else of this package is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from workers.engine.cache.block_pool import BlockPool
from workers.engine.scheduling.scheduler import Scheduler
from workers.engine.tiers.options import TierOptions

if TYPE_CHECKING:
    from workers.engine.tiers.tiers import KVTier


def open_tier(
    options: TierOptions, cache: Tensor, pool: BlockPool, computation: Mapping[str, str], steps: str
) -> KVTier | None:
    """Return the KV tier of the options, None if it is off; see `load_tier`. Raises ConfigError."""
    if options.kind == "off":
        return None
    from workers.engine.tiers.load import load_tier  # noqa: PLC0415

    return load_tier(options, cache, pool, computation, steps if cache.device.type != "cpu" else "")


def scheduler_type(tier: KVTier | None) -> Callable[..., Scheduler]:
    """Return what makes the scheduler of an engine."""
    if tier is None:
        return Scheduler
    from workers.engine.tiers.tiered_scheduler import TieredScheduler  # noqa: PLC0415

    return partial(TieredScheduler, tier)
