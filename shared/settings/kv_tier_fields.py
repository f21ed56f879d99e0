"""Settings of the KV tier: computed blocks of the KV cache that are kept outside of it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr

KVTierName = Literal["off", "memory", "disk", "redis"]


class KVTierFields(BaseModel):
    """Settings of the KV tier of a worker."""

    kv_tier: KVTierName = Field(
        "off",
        description="where computed blocks of the KV cache are kept in addition, so that later requests and other "
        "workers load them instead of computing them: this worker's memory, a folder that the workers of a machine "
        "share, or a Redis that all workers share",
    )
    kv_tier_gib: float = Field(
        4.0, gt=0, description="maximum size of the KV tier, in GiB; in Redis, for each model and kind of worker"
    )
    kv_tier_dir: Path | None = Field(
        None, description="folder of the KV tier on disk, which only its owner may write; default: in `cache_dir`"
    )
    kv_tier_redis_url: SecretStr | None = Field(
        None, description="Redis or Valkey server of the KV tier; default: `redis_url`"
    )
    kv_tier_ttl: float = Field(
        3600, ge=1, le=2_592_000, description="seconds that an unused block is kept on disk or in Redis"
    )
    kv_tier_min_tokens: int = Field(
        256,
        ge=1,
        description="minimum tokens of a prompt with its answer that are kept in or loaded from the KV tier",
    )
