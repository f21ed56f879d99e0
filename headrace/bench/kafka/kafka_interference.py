"""Interference of batch work from a Kafka topic with interactive HTTP requests: time to the first token, in pairs.

The topic's backlog is longer than a pair takes. Each pair has its own topics, processes and Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from rich.console import Console

from headrace.batch.kafka_reader import TopicReader
from headrace.bench.gateway.priorities import Pair, Priorities, measure_pair
from headrace.bench.gateway.serve import measure
from headrace.bench.harness.full_stack import full_stack
from headrace.bench.harness.load import Load, Target
from headrace.bench.harness.workload import make_mix, warmup_mix
from headrace.bench.kafka.kafka_cluster import Installation, running_installation
from shared.kafka.message import read_result

BACKLOG_REQUESTS = 2_000  # requests
POLL_S = 0.1


def measure_interference(
    model: str, bootstrap: str, repeats: int, seed: int, settings: dict[str, object], console: Console
) -> Priorities:
    """Measure `repeats` pairs. Raises HeadraceError if a request fails."""
    return Priorities([_pair(model, bootstrap, seed + number, settings, console) for number in range(repeats)])


def _pair(model: str, bootstrap: str, seed: int, settings: dict[str, object], console: Console) -> Pair:
    with running_installation(bootstrap) as installation:
        own = {**installation.given, **settings}
        with full_stack(model, "--redis-url", str(own.pop("redis_url")), settings=own) as stack:
            target = Target(stack.url, installation.model, extra={"ignore_eos": True})
            asyncio.run(measure(target, warmup_mix(seed), Load(1), console))
            return asyncio.run(measure_pair(target, seed, _backlog(installation), console))


def _backlog(installation: Installation) -> Any:
    @asynccontextmanager
    async def batch_load(target: Target, seed: int) -> AsyncIterator[Callable[[], int]]:
        requests = {
            str(number): {"prompt": item.prompt, "max_tokens": item.output_tokens, **target.extra}
            for number, item in enumerate(make_mix(seed, BACKLOG_REQUESTS))
        }
        await asyncio.to_thread(installation.send, requests)
        with TopicReader(installation.settings, [installation.results], {}) as reader:
            tokens = 0

            def output_tokens() -> int:
                nonlocal tokens
                ends = reader.end_offsets()
                while not reader.has_reached(ends):
                    usages = [read_result(record).usage for record in reader.poll(POLL_S)]
                    tokens += sum(usage.completion_tokens for usage in usages if usage is not None)
                return tokens

            yield output_tokens

    return batch_load
