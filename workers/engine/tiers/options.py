"""Options of the KV tier, from the settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from shared.settings import Settings
from shared.settings.kv_tier_fields import KVTierName

FOLDER = "kv-tier"  # in `cache_dir`


@dataclass(frozen=True)
class TierOptions:
    """Options of an engine's KV tier.

    Attributes:
        kind: where blocks are kept.
        size: most bytes.
        folder: of the blocks on disk.
        url: of the Redis server; it may contain a password.
        ttl: seconds that an unused block is kept on disk or in Redis.
        min_tokens: least tokens of a sequence that are saved, or loaded.
    """

    kind: KVTierName = "off"
    size: int = 2**32
    folder: Path | None = None
    url: str = field(default="", repr=False)
    ttl: float = 3600.0
    min_tokens: int = 256

    @classmethod
    def from_settings(cls, settings: Settings) -> TierOptions:
        """Return the options of the settings."""
        return cls(
            kind=settings.kv_tier,
            size=int(settings.kv_tier_gib * 2**30),
            folder=settings.kv_tier_dir or settings.cache_dir / FOLDER,
            url=(settings.kv_tier_redis_url or settings.redis_url).get_secret_value(),
            ttl=settings.kv_tier_ttl,
            min_tokens=settings.kv_tier_min_tokens,
        )
