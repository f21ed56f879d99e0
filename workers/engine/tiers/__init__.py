"""KV tier: full blocks of the KV cache in host memory, on disk or in Redis, where they outlive the cache.

Only the engine imports it; without a tier, only its options.
"""
