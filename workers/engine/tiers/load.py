"""Construction of an engine's KV tier from its options."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

from shared.errors import ConfigError
from workers.engine.cache.block_pool import BlockPool
from workers.engine.cache.prefix_cache import PrefixCache
from workers.engine.tiers.block_memory import BlockMemory
from workers.engine.tiers.codec import DTYPES, VERSION, BlockCodec
from workers.engine.tiers.disk_store import DiskStore
from workers.engine.tiers.memory_store import MemoryStore
from workers.engine.tiers.options import TierOptions
from workers.engine.tiers.rates import MeasuredRates
from workers.engine.tiers.store import Store, StoreGuard
from workers.engine.tiers.tiers import KVTier


def load_tier(
    options: TierOptions, cache: Tensor, pool: BlockPool, computation: Mapping[str, str], steps: str
) -> KVTier:
    """Return the KV tier of an engine.

    Args:
        cache: memory of the KV cache; see `make_cache`.
        computation: what the bits of the engine depend on.
        steps: the sizes of its steps, where the bits depend on them too.

    Raises:
        ConfigError: the store cannot be used.
    """
    if cache.dtype not in DTYPES:
        raise ConfigError(f"kv_tier is not supported for a KV cache of {cache.dtype}", param="kv_tier")
    layers, both, _, heads, slots, dim = cache.shape
    codec = BlockCodec((layers, both, heads, slots, dim), cache.dtype)
    identity = identify(computation, (layers, both, heads, slots, dim), str(cache.dtype), steps)
    store = _open(options, identity.hex()[:16], codec.value_bytes)
    return KVTier(
        pool,
        PrefixCache(pool, slots, secret=identity),
        BlockMemory(cache),
        codec,
        StoreGuard(store),
        rates=MeasuredRates(codec.value_bytes / slots),
        block_size=slots,
        min_tokens=options.min_tokens,
    )


def identify(computation: Mapping[str, str], *layout: object) -> bytes:
    """Return a digest of 256 bits that is equal for engines whose blocks have equal bytes in an equal layout."""
    known = repr((VERSION, sorted(computation.items()), layout))
    return hashlib.sha256(known.encode()).digest()


def _open(options: TierOptions, scope: str, value_bytes: int) -> Store:
    if options.size < value_bytes:
        raise ConfigError(f"kv_tier_gib must hold at least one block of {value_bytes} bytes", param="kv_tier_gib")
    if options.kind == "memory":
        return MemoryStore(options.size)
    if options.kind == "disk":
        assert options.folder is not None
        return DiskStore(options.folder, value_bytes, budget=options.size, ttl=options.ttl)
    from workers.engine.tiers.redis_store import RedisStore  # noqa: PLC0415  not every engine has a Redis client

    return RedisStore(options.url, scope, value_bytes, budget=options.size, ttl=options.ttl)
