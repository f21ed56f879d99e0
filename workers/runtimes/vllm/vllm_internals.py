"""Access to what vLLM does not export: the numbers of its scheduler in this process."""

from __future__ import annotations

from vllm.v1.engine.llm_engine import LLMEngine

from workers.engine.stats import EngineStats


def engine_stats(engine: LLMEngine) -> EngineStats:
    """Return the numbers of choices and KV blocks."""
    scheduler = engine.engine_core.engine_core.scheduler
    running, waiting = scheduler.get_request_counts()
    pool = scheduler.kv_cache_manager.block_pool
    total = pool.num_gpu_blocks - 1  # one stands for no block
    return EngineStats(
        running,
        waiting,
        blocks_used=total - pool.get_num_free_blocks(),
        blocks_total=total,
        block_size=engine.vllm_config.cache_config.block_size,
    )
