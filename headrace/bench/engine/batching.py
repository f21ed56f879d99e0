"""`headrace bench batching`: the gain of batching, chunked prompts and the prefix cache, in one engine.

Each part consists of pairs of runs that differ in one thing only.
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

from headrace.bench.engine.engine_driver import EngineDriver, load_engine
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
# part `prefix`
PREFIX_REQUESTS = 32
PREFIX_TOKENS, SUFFIX_TOKENS, PREFIX_OUTPUT_TOKENS = 512, 32, 32
# part `stall`
STREAMS, STREAM_PROMPT_TOKENS, LONG_PROMPT_TOKENS = 16, 32, 4000
# part `steps`
STEPS = 40
# part `waiting`
WAITING_SEQUENCES = (10, 10_000)
WAITING_STEPS = 400


@dataclass(frozen=True)
class Pair:
    """A figure of each run, without and with what is measured. The ratio is the median over the pairs."""

    without: list[float]
    with_it: list[float]

    @property
    def ratio(self) -> float:
        return statistics.median(b / a for a, b in zip(self.without, self.with_it, strict=True))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio}


@dataclass
class Batching:
    """Results; a part that was not measured is empty.

    Attributes:
        policies: a report of each run on the mix, by policy.
        stall: p99 seconds between tokens of running streams, without and with a long prompt arriving.
        budget: tokens per step in `stall`.
        prefix: requests per second, without and with the prefix cache.
        waiting: seconds of one scheduler step, with few and with many waiting requests.
        steps: seconds of a step that generates one token, and of one that generates CONCURRENCY tokens.
    """

    policies: dict[str, list[Report]] = field(default_factory=dict)
    budget: int = 0
    stall: Pair | None = None
    prefix: Pair | None = None
    waiting: Pair | None = None
    steps: Pair | None = None

    def gain(self, policy: str) -> float:
        """Return the tokens/s of continuous batching divided by that of another policy."""
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
    """Measure the named parts, each `repeats` times."""
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
    """Run the mix with CONCURRENCY requests at a time, under each policy in turn."""
    reports: dict[str, list[Report]] = {policy: [] for policy in POLICIES}
    for number in range(repeats):
        for policy in POLICIES:
            console.print(f"run {number + 1} of {repeats}: {policy}")
            engine = load_engine(model, scheduling=policy, max_num_seqs=CONCURRENCY, prefix_caching=False)
            EngineDriver(engine).closed_loop(_mix_requests(engine, seed - 1, 2), 2)
            driver = EngineDriver(engine)
            seconds = driver.closed_loop(_mix_requests(engine, seed, 48), CONCURRENCY)
            reports[policy].append(Report.from_samples(list(driver.samples.values()), seconds))
            del engine, driver
            gc.collect()
    return reports


def _mix_requests(engine: Engine, seed: int, count: int) -> Iterator[EngineRequest]:
    for number, item in enumerate(make_mix(seed, count)):
        prompt = engine.tokenizer.encode_chat([Message("user", item.prompt)])
        yield _request(f"{seed}-{number}", prompt, item.output_tokens)


def _request(name: str, prompt: list[int], max_tokens: int) -> EngineRequest:
    return EngineRequest(name, tuple(prompt), SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True))


def measure_stall(model: str, budget: int, seed: int) -> tuple[float, float]:
    """Return the p99 seconds between tokens of STREAMS streams: undisturbed, and during a long prompt."""
    chance = random.Random(seed)  # noqa: S311  a benchmark must be repeatable
    engine = load_engine(
        model, max_num_batched_tokens=budget, max_num_seqs=STREAMS + 1, max_model_len=8192, prefix_caching=False
    )
    driver = EngineDriver(engine)
    for number in range(STREAMS):
        driver.add(_request(f"stream-{number}", _random_tokens(chance, STREAM_PROMPT_TOKENS), 4000))
    driver.step_until(lambda: all(sample.arrivals for sample in driver.samples.values()))
    streams = list(driver.samples.values())
    steps = -(-LONG_PROMPT_TOKENS // max(1, budget - STREAMS))
    for _ in range(steps):
        driver.step()
    quiet = [gap for sample in streams for gap in sample.gaps[-steps:]]
    before = [len(sample.gaps) for sample in streams]
    driver.add(_request("long", _random_tokens(chance, LONG_PROMPT_TOKENS), 1))
    driver.step_until(lambda: bool(driver.samples["long"].arrivals))
    disturbed = [gap for sample, count in zip(streams, before, strict=True) for gap in sample.gaps[count:]]
    return percentile(sorted(quiet), 0.99), percentile(sorted(disturbed), 0.99)


def _random_tokens(chance: random.Random, count: int) -> list[int]:
    return [chance.randrange(1000, 40_000) for _ in range(count)]


def measure_prefix(model: str, seed: int) -> tuple[float, float]:
    """Return requests per second without and with the prefix cache; all prompts share their beginning."""
    rates = []
    for caching in (False, True):
        chance = random.Random(seed)  # noqa: S311  a benchmark must be repeatable
        engine = load_engine(model, prefix_caching=caching, max_num_seqs=PREFIX_REQUESTS)
        EngineDriver(engine).closed_loop([_request("warm up", _random_tokens(chance, 64), 4)], 1)
        prefix = _random_tokens(chance, PREFIX_TOKENS)
        requests = [
            _request(str(number), [*prefix, *_random_tokens(chance, SUFFIX_TOKENS)], PREFIX_OUTPUT_TOKENS)
            for number in range(PREFIX_REQUESTS)
        ]
        rates.append(PREFIX_REQUESTS / EngineDriver(engine).closed_loop(requests, PREFIX_REQUESTS))
        del engine
        gc.collect()
    return rates[0], rates[1]


def measure_steps(model: str, seed: int) -> tuple[float, float]:
    """Return the median seconds of a step with one running stream, and with CONCURRENCY of them."""
    chance = random.Random(seed)  # noqa: S311  a benchmark must be repeatable
    driver = EngineDriver(load_engine(model, max_num_seqs=CONCURRENCY, prefix_caching=False))
    medians = []
    for streams in (1, CONCURRENCY):
        for number in range(streams - len(driver.running)):
            driver.add(_request(f"{streams}-{number}", _random_tokens(chance, STREAM_PROMPT_TOKENS), 4000))
        driver.step_until(lambda: all(sample.arrivals for sample in driver.samples.values()))
        times = []
        for _ in range(STEPS):
            begin = time.perf_counter()
            driver.step()
            times.append(time.perf_counter() - begin)
        medians.append(statistics.median(times))
    return medians[0], medians[1]


def measure_waiting() -> tuple[float, float]:
    """Return the median seconds of a scheduler step with a full batch and few or many waiting requests."""
    schedulers = [_full_scheduler(waiting) for waiting in WAITING_SEQUENCES]
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
