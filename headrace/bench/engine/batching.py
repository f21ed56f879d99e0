"""`headrace bench batching`: what batching, chunking and the prefix cache gain, in one engine.

Each part is a pair of runs, or several, that differ in one thing alone. It knows nothing of how figures are drawn.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console

from headrace.bench.engine.engine_driver import Driver, load_engine
from headrace.bench.harness.report import Report, percentile
from headrace.bench.harness.workload import make_mix
from shared.protocol import Message, SamplingParams
from workers.engine.cache.block_pool import BlockPool
from workers.engine.cache.kv_cache import KVCacheManager
from workers.engine.cache.prefix_cache import PrefixCache
from workers.engine.engine import Engine
from workers.engine.interface import EngineRequest
from workers.engine.scheduling.scheduler import Scheduler
from workers.engine.sequence import Sequence
from workers.engine.text.detokenizer import TextStream

POLICIES = ("continuous", "dynamic", "static")
CONCURRENCY = 32
SHARED, SUFFIX, SHARED_REQUESTS, SHARED_OUTPUT = 512, 32, 32, 32  # the prefix part's tokens and requests
STREAMS, STREAM_PROMPT, LONG_PROMPT = 16, 32, 4000  # of the stall part
STEPS = 40
WAITING = (10, 10_000)
WAITING_STEPS = 400


@dataclass(frozen=True)
class Pair:
    """A figure without and with something, of each run; the ratio is the median over pairs."""

    without: list[float]
    with_it: list[float]

    @property
    def ratio(self) -> float:
        return statistics.median(b / a for a, b in zip(self.without, self.with_it, strict=True))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio}


@dataclass
class Batching:
    """What was measured; a part that was left out is empty.

    Attributes:
        policies: a report of each run on the mix, by policy.
        stall: p99 seconds between a running stream's tokens, without and with a long prompt that arrives.
        budget: tokens a step in `stall`.
        prefix: requests a second, without and with the prefix cache.
        waiting: seconds that the scheduler takes a step, with few and with many that wait.
        steps: seconds of a step that makes one token, and of one that makes CONCURRENCY: what a free seat costs.
    """

    policies: dict[str, list[Report]] = field(default_factory=dict)
    budget: int = 0
    stall: Pair | None = None
    prefix: Pair | None = None
    waiting: Pair | None = None
    steps: Pair | None = None

    def gain(self, policy: str) -> float:
        """How many times the other policy's tokens/s continuous batching makes."""
        pairs = zip(self.policies["continuous"], self.policies[policy], strict=True)
        return statistics.median(a.output_tokens_per_second / b.output_tokens_per_second for a, b in pairs)

    def as_dict(self) -> dict[str, Any]:
        return {
            "policies": {name: [report.as_dict() for report in found] for name, found in self.policies.items()},
            "gain": {name: self.gain(name) for name in self.policies if name != "continuous"},
            "budget": self.budget,
            **{name: part.as_dict() if (part := getattr(self, name)) else None for name in PAIRS},
        }


PAIRS = ("stall", "prefix", "waiting", "steps")
PARTS = ("policies", *PAIRS)


def measure_batching(
    model: str, parts: list[str], budget: int, repeats: int, seed: int, console: Console
) -> Batching:
    """Each of the named parts `repeats` times."""
    found = Batching(budget=budget)
    if "policies" in parts:
        found.policies = compare_policies(model, repeats, seed, console)
    measures: dict[str, Callable[[int], tuple[float, float]]] = {
        "stall": lambda number: measure_stall(model, budget, seed + number),
        "prefix": lambda number: measure_prefix(model, seed + number),
        "waiting": lambda number: measure_waiting(),
        "steps": lambda number: measure_steps(model, seed + number),
    }
    for name in PAIRS:
        if name in parts:
            console.print(f"{name}, {repeats} times")
            setattr(found, name, Pair(*map(list, zip(*map(measures[name], range(repeats)), strict=True))))
            gc.collect()
    return found


def compare_policies(model: str, repeats: int, seed: int, console: Console) -> dict[str, list[Report]]:
    """The mix, CONCURRENCY requests at a time, under each policy in turn."""
    reports: dict[str, list[Report]] = {policy: [] for policy in POLICIES}
    for number in range(repeats):
        for policy in POLICIES:
            console.print(f"run {number + 1} of {repeats}: {policy}")
            engine = load_engine(model, scheduling=policy, max_num_seqs=CONCURRENCY, prefix_caching=False)
            Driver(engine).closed_loop(_mix(engine, seed - 1, 2), 2)
            driver = Driver(engine)
            seconds = driver.closed_loop(_mix(engine, seed, 48), CONCURRENCY)
            reports[policy].append(Report.of(list(driver.samples.values()), seconds))
            del engine, driver
            gc.collect()
    return reports


def _mix(engine: Engine, seed: int, count: int) -> Iterator[EngineRequest]:
    for number, item in enumerate(make_mix(seed, count)):
        prompt = engine.tokenizer.encode_chat([Message("user", item.prompt)])
        yield _request(f"{seed}-{number}", prompt, item.output_tokens)


def _request(name: str, prompt: list[int], max_tokens: int) -> EngineRequest:
    return EngineRequest(name, tuple(prompt), SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True))


def measure_stall(model: str, budget: int, seed: int) -> tuple[float, float]:
    """p99 seconds between tokens of STREAMS running streams: undisturbed, and while a long prompt is computed."""
    chance = random.Random(seed)  # noqa: S311  a benchmark must be repeatable
    engine = load_engine(
        model, max_num_batched_tokens=budget, max_num_seqs=STREAMS + 1, max_model_len=8192, prefix_caching=False
    )
    driver = Driver(engine)
    for number in range(STREAMS):
        driver.add(_request(f"stream-{number}", _tokens(chance, STREAM_PROMPT), 4000))
    driver.until(lambda: all(sample.arrivals for sample in driver.samples.values()))
    streams = list(driver.samples.values())
    steps = -(-LONG_PROMPT // max(1, budget - STREAMS))
    for _ in range(steps):
        driver.step()
    quiet = [gap for sample in streams for gap in sample.gaps[-steps:]]
    before = [len(sample.gaps) for sample in streams]
    driver.add(_request("long", _tokens(chance, LONG_PROMPT), 1))
    driver.until(lambda: bool(driver.samples["long"].arrivals))
    disturbed = [gap for sample, count in zip(streams, before, strict=True) for gap in sample.gaps[count:]]
    return percentile(sorted(quiet), 0.99), percentile(sorted(disturbed), 0.99)


def _tokens(chance: random.Random, count: int) -> list[int]:
    return [chance.randrange(1000, 40_000) for _ in range(count)]


def measure_prefix(model: str, seed: int) -> tuple[float, float]:
    """Requests a second without and with the prefix cache, all at once, of prompts that begin alike."""
    rates = []
    for caching in (False, True):
        chance = random.Random(seed)  # noqa: S311  a benchmark must be repeatable
        engine = load_engine(model, prefix_caching=caching, max_num_seqs=SHARED_REQUESTS)
        Driver(engine).closed_loop([_request("warm up", _tokens(chance, 64), 4)], 1)
        stem = _tokens(chance, SHARED)
        requests = [
            _request(str(number), [*stem, *_tokens(chance, SUFFIX)], SHARED_OUTPUT)
            for number in range(SHARED_REQUESTS)
        ]
        rates.append(SHARED_REQUESTS / Driver(engine).closed_loop(requests, SHARED_REQUESTS))
        del engine
        gc.collect()
    return rates[0], rates[1]


def measure_steps(model: str, seed: int) -> tuple[float, float]:
    """Median seconds of a step with one running stream, and with CONCURRENCY of them."""
    chance = random.Random(seed)  # noqa: S311  a benchmark must be repeatable
    driver = Driver(load_engine(model, max_num_seqs=CONCURRENCY, prefix_caching=False))
    medians = []
    for streams in (1, CONCURRENCY):
        for number in range(streams - len(driver.running)):
            driver.add(_request(f"{streams}-{number}", _tokens(chance, STREAM_PROMPT), 4000))
        driver.until(lambda: all(sample.arrivals for sample in driver.samples.values()))
        times = []
        for _ in range(STEPS):
            begin = time.perf_counter()
            driver.step()
            times.append(time.perf_counter() - begin)
        medians.append(statistics.median(times))
    return medians[0], medians[1]


def measure_waiting() -> tuple[float, float]:
    """Median seconds of the scheduler's step with a full batch of answers, and few or many that wait; by turns."""
    schedulers = [_full_scheduler(waiting) for waiting in WAITING]
    spent: list[list[float]] = [[], []]
    for _ in range(WAITING_STEPS):
        for scheduler, times in zip(schedulers, spent, strict=True):
            begin = time.perf_counter()
            batch = scheduler.schedule()
            scheduler.advance(batch)
            times.append(time.perf_counter() - begin)
            for item in batch.items:
                item.sequence.tokens.append(0)
    return statistics.median(spent[0]), statistics.median(spent[1])


def _full_scheduler(waiting: int) -> Scheduler:
    pool = BlockPool(4096)
    scheduler = Scheduler(KVCacheManager(pool, 16, PrefixCache(pool, 16)), CONCURRENCY, 4096)
    for order in range(CONCURRENCY + waiting):
        tokens, text = [order] * 64, TextStream(lambda ids: "")
        sequence = Sequence(str(order), 0, order, SamplingParams(), tokens, 64, 9999, frozenset(), text)
        sequence.tenant = f"tenant-{order % 100}"
        scheduler.add(sequence)
    batch = scheduler.schedule()
    scheduler.advance(batch)
    for item in batch.items:
        item.sequence.tokens.append(0)
    return scheduler
