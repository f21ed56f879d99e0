"""What batch work out of a topic costs interactive requests by HTTP: time to the first token, in pairs.

The topic's backlog is more than can be done meanwhile. Each pair has topics, processes and a Redis of its own.
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
from headrace.bench.harness.full_stack import whole_path
from headrace.bench.harness.load import Load, Target
from headrace.bench.harness.workload import make_mix, warmup_mix
from headrace.bench.kafka.kafka_cluster import Installation, installation
from shared.kafka.message import read_result

BACKLOG = 2_000  # requests
POLL = 0.1


def measure_beside(
    model: str, bootstrap: str, repeats: int, seed: int, settings: dict[str, object], console: Console
) -> Priorities:
    """Raises HeadraceError where a request fails."""
    return Priorities([_pair(model, bootstrap, seed + number, settings, console) for number in range(repeats)])


def _pair(model: str, bootstrap: str, seed: int, settings: dict[str, object], console: Console) -> Pair:
    with installation(bootstrap) as place:
        own = {**place.given, **settings}
        with whole_path(model, "--redis-url", str(own.pop("redis_url")), settings=own) as path:
            target = Target(path.url, place.model, extra={"ignore_eos": True})
            asyncio.run(measure(target, warmup_mix(seed), Load(1), console))
            return asyncio.run(measure_pair(target, seed, _backlog(place), console))


def _backlog(place: Installation) -> Any:
    @asynccontextmanager
    async def beside(target: Target, seed: int) -> AsyncIterator[Callable[[], int]]:
        asked = {
            str(number): {"prompt": item.prompt, "max_tokens": item.output_tokens, **target.extra}
            for number, item in enumerate(make_mix(seed, BACKLOG))
        }
        await asyncio.to_thread(place.send, asked)
        with TopicReader(place.settings, [place.results], {}) as reader:
            made = 0

            def tokens() -> int:
                nonlocal made
                ends = reader.end_offsets()
                while not reader.has_reached(ends):
                    usages = [read_result(record).usage for record in reader.poll(POLL)]
                    made += sum(usage.completion_tokens for usage in usages if usage is not None)
                return made

            yield tokens

    return beside
