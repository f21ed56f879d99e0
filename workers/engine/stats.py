"""Numbers of an engine, for metrics and heartbeats."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpeculationStats:
    """Counters of speculation since the engine started.

    Attributes:
        drafts: how often a sequence had drafted tokens in a step.
        draft_tokens: tokens drafted.
        accepted: drafted tokens that became part of an answer, by their place in the draft.
    """

    drafts: int = 0
    draft_tokens: int = 0
    accepted: tuple[int, ...] = ()


NO_SPECULATION = SpeculationStats()


@dataclass(frozen=True)
class TierStats:
    """Counters of the KV tier since the engine started.

    Attributes:
        queries, hits: tokens looked up in the store, and tokens loaded from it.
        loaded_bytes, saved_bytes: read and used, and written.
        load_seconds: time of reading.
        drops: blocks that were not saved: too many waited, they were overwritten, or the store could not take them.
        damaged: values that were not what was saved.
        failures: how often the store has failed.
        pending: blocks that wait to be saved now.
    """

    queries: int = 0
    hits: int = 0
    loaded_bytes: int = 0
    saved_bytes: int = 0
    load_seconds: float = 0.0
    drops: int = 0
    damaged: int = 0
    failures: int = 0
    pending: int = 0


@dataclass(frozen=True)
class EngineStats:
    """Current numbers of sequences and KV blocks, and counters since the engine started.

    Attributes:
        preemptions: how often a sequence was preempted.
        fault: the reason for which the engine takes no new requests at the moment, "" if it takes them.
        prefix_queries, prefix_hits: tokens looked up in the prefix cache, and tokens found there.
        gpu_memory_used: bytes that this process has allocated on its GPU; None without one.
        block_size: tokens in a KV block; 0 if unknown.
        batch_size, batch_tokens: sequences and tokens that the last step computed; None and 0 if unknown.
        speculation: what became of drafted tokens.
        tier: what the KV tier did; None without one.
    """

    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    blocks_total: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    gpu_memory_used: int | None = None
    block_size: int = 0
    batch_size: int | None = None
    batch_tokens: int = 0
    speculation: SpeculationStats = NO_SPECULATION
    tier: TierStats | None = None
    fault: str = ""
