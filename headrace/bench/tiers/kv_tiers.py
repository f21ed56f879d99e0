"""`headrace bench kv-tier`: what a KV tier gains at a takeover, and what it costs other requests.

All figures are ratios of runs in turns in one engine, whose tier is used or left alone. In the first part, another
engine has computed a prompt and the beginning of its answer, as a worker does that is lost then. In the others,
requests share no beginnings. Runs without the tier have a salt of their own, so that they find nothing of the other
runs in the prefix cache.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import redis
from rich.console import Console
from rich.table import Table

from headrace.bench.engine.engine_driver import load_engine
from headrace.bench.harness.cpu_contention import foreign_load
from headrace.bench.harness.workload import make_mix
from shared.errors import HeadraceError
from shared.protocol import Message, SamplingParams
from shared.redis.embedded import EmbeddedServer
from shared.settings.kv_tier_fields import KVTierName
from workers.engine.engine import Engine
from workers.engine.interface import EngineRequest
from workers.engine.tiers.options import TierOptions

PARTS = ("takeover", "chats", "batch", "long")
LOGGED_TOKENS = 16  # of the answer, before the takeover
SETTLE_LIMIT_S = 60.0
LONG_PROMPTS = (256, 1024)  # tokens of the prompts that are long enough to be saved
LONG_ANSWER = 32


@dataclass
class Pairs:
    """Seconds without and with the tier, and the CPU seconds of this process and of the store's."""

    name: str
    tier: KVTierName
    wall: list[tuple[float, float]] = field(default_factory=list)
    cpu: list[tuple[float, float]] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)

    def ratios(self, by: str) -> list[float]:
        """Return with / without of each pair, in order of size."""
        pairs: list[tuple[float, float]] = getattr(self, by)
        return sorted(with_it / without for without, with_it in pairs)

    def as_dict(self) -> dict[str, Any]:
        medians = {by: statistics.median(self.ratios(by)) for by in ("wall", "cpu")}
        return {**asdict(self), "median": medians}


@dataclass
class KVTiers:
    comparisons: list[Pairs]

    def as_dict(self) -> dict[str, Any]:
        return {"comparisons": [each.as_dict() for each in self.comparisons]}

    def table(self) -> Table:
        table = Table("tier", "runs", "pairs", "time with / without", "CPU time with / without", "foreign load")
        for each in self.comparisons:
            table.add_row(
                *(each.tier, each.name, str(len(each.wall))),
                *(_spread(each.ratios(by)) for by in ("wall", "cpu")),
                f"{max(each.foreign):.0%}",
            )
        return table


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})"


def measure_kv_tiers(
    model: str,
    tiers: Sequence[KVTierName],
    parts: Sequence[str],
    prompt: int,
    repeats: int,
    seed: int,
    console: Console,
    **settings: Any,
) -> KVTiers:
    """Measure `repeats` pairs of each part with each tier; of takeovers, with those that workers share.

    Raises HeadraceError if an answer differs, or if nothing is loaded at a takeover.
    """
    found: list[Pairs] = []
    with tempfile.TemporaryDirectory() as folder:
        for tier in tiers:
            with _store(tier, Path(folder)) as (options, cpu_seconds):
                bench = _Bench(model, options, cpu_seconds, seed, console, settings)
                if "takeover" in parts and tier == "memory":
                    console.print("memory: no takeover, since the tier belongs to one worker")
                elif "takeover" in parts:
                    found.append(bench.measure_takeovers(prompt, repeats))
                found += [bench.measure_costs(part, repeats) for part in parts if part != "takeover"]
    return KVTiers(found)


@contextmanager
def _store(tier: KVTierName, folder: Path) -> Iterator[tuple[TierOptions, Callable[[], float]]]:
    """Yield the options of a tier, and what returns the CPU seconds of its server."""
    options = TierOptions(tier, 2**33, folder / "disk")
    if tier != "redis":
        yield options, lambda: 0.0
        return
    server = EmbeddedServer(folder / "valkey")
    server.start()
    try:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("appendonly", "no")  # as a server for a tier should have it
        process = psutil.Process(server.pid)
        yield TierOptions(tier, 2**33, url=server.local_url), lambda: sum(process.cpu_times()[:2])
    finally:
        server.stop()


class _Never:
    """Rates by which a tier is left alone."""

    def note_step(self, rows: int, seconds: float) -> None: ...

    def note_lookup(self, seconds: float) -> None: ...

    def note_load(self, tokens: int, seconds: float) -> None: ...

    def lookup_limit(self, tokens: int) -> float | None:
        return None

    def load_limit(self, tokens: int, before: int) -> float | None:
        return None

    def saving_pays(self) -> bool:
        return False

    def tries(self) -> bool:
        return False


class _Bench:
    """The engines of one tier, and the runs on them."""

    def __init__(
        self,
        model: str,
        options: TierOptions,
        cpu_seconds: Callable[[], float],
        seed: int,
        console: Console,
        settings: dict[str, Any],
    ) -> None:
        self._kind = options.kind
        self._store_cpu = cpu_seconds
        self._seed = seed
        self._console = console
        self._load = partial(load_engine, model, speculation="off", tier=options, **settings)
        self._engine = self._load()
        _run(self._engine, [_request("warm up", _tokens(seed - 1, 128), 2)])

    def measure_takeovers(self, prompt: int, repeats: int) -> Pairs:
        """Measure the time to the first token of an answer that another engine has begun."""
        found = Pairs(f"takeover, prompt of {prompt} tokens", self._kind)
        lost = self._load()
        for number in range(repeats):
            self._console.print(f"{self._kind}: takeover {number + 1} of {repeats}")
            tokens = _tokens(self._seed + number, prompt)
            [logged], _ = _run(lost, [_request(str(number), tokens, LOGGED_TOKENS)])
            _settle(lost)
            request = _request(str(number), tokens, LOGGED_TOKENS + 1, logged)
            before = self._engine.stats().prefix_hits
            self._compare(found, number, [request])
            if self._engine.stats().prefix_hits - before < prompt // 2:
                raise HeadraceError("the second engine did not load what the first one has saved")
        return found

    def measure_costs(self, part: str, repeats: int) -> Pairs:
        """Measure requests that share nothing: chats alone or 32 at a time, or long prompts."""
        name, concurrency, make = {
            "chats": ("chats, one by one", 1, self._chats),
            "batch": ("chats, 32 at a time", 32, self._chats),
            "long": ("long prompts, one by one", 1, self._long_prompts),
        }[part]
        pairs = Pairs(name, self._kind)
        for number in range(repeats):
            self._console.print(f"{self._kind}: {name}, pair {number + 1} of {repeats}")
            self._compare(pairs, number, make(number, 4 if concurrency == 1 else 32), concurrency)
        return pairs

    def _compare(self, pairs: Pairs, number: int, requests: list[EngineRequest], concurrency: int = 1) -> None:
        """Run requests without and with the tier, in turns; with it, the CPU time of saving counts too."""
        seconds: dict[bool, float] = {}
        spent: dict[bool, float] = {}
        answers: dict[bool, list[list[int]]] = {}
        with foreign_load() as during:
            for tiered in (True, False) if number % 2 else (False, True):
                cpu = time.process_time() + self._store_cpu()
                answers[tiered], seconds[tiered] = self._run(requests, concurrency, tiered=tiered)
                spent[tiered] = time.process_time() + self._store_cpu() - cpu
        if answers[True] != answers[False]:
            raise HeadraceError("an answer differs with the tier")
        pairs.wall.append((seconds[False], seconds[True]))
        pairs.cpu.append((spent[False], spent[True]))
        pairs.foreign.append(during.share)

    def _run(
        self, requests: list[EngineRequest], concurrency: int, *, tiered: bool
    ) -> tuple[list[list[int]], float]:
        """Run requests, with the tier and until all is saved, or without it."""
        tier = self._engine.tier
        assert tier is not None
        rates = tier.rates
        try:
            if tiered:
                found = _run(self._engine, requests, concurrency)
                _settle(self._engine)
                return found
            tier.rates = _Never()
            return _run(self._engine, [replace(each, prefix_salt=b"without") for each in requests], concurrency)
        finally:
            tier.rates = rates

    def _chats(self, number: int, count: int) -> list[EngineRequest]:
        items = make_mix(self._seed + number + 1000, count)
        prompts = [self._engine.tokenizer.encode_chat([Message("user", item.prompt)]) for item in items]
        return [
            _request(f"{number}-{place}", prompt, item.output_tokens)
            for place, (prompt, item) in enumerate(zip(prompts, items, strict=True))
        ]

    def _long_prompts(self, number: int, count: int) -> list[EngineRequest]:
        chance = random.Random(self._seed + number)  # noqa: S311  a benchmark must be repeatable
        lengths = [chance.randint(*LONG_PROMPTS) for _ in range(count)]
        return [
            _request(f"{number}-{place}", _tokens(chance.randrange(2**31), length), LONG_ANSWER)
            for place, length in enumerate(lengths)
        ]


def _tokens(seed: int, count: int) -> list[int]:
    chance = random.Random(seed)  # noqa: S311  a benchmark must be repeatable
    return [chance.randrange(1000, 40_000) for _ in range(count)]


def _request(name: str, prompt: list[int], max_tokens: int, resumed: Sequence[int] = ()) -> EngineRequest:
    params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    return EngineRequest(name, tuple(prompt), params, (tuple(resumed),))


def _run(engine: Engine, requests: list[EngineRequest], concurrency: int = 1) -> tuple[list[list[int]], float]:
    """Run requests, `concurrency` at a time. Return the new tokens of each, and the seconds."""
    answers: dict[str, list[int]] = {request.id: [] for request in requests}
    todo, running = iter(requests), 0
    began = time.perf_counter()
    while True:
        while running < concurrency and (request := next(todo, None)) is not None:
            engine.add(request)
            running += 1
        if not running:
            break
        for output in engine.step():
            if output.error is not None:
                raise output.error
            answers[output.job_id] += [token.id for token in output.tokens]
            running -= output.finished
    return list(answers.values()), time.perf_counter() - began


def _settle(engine: Engine) -> None:
    """Wait until all blocks are saved. Raises HeadraceError if that takes too long."""
    assert engine.tier is not None
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while engine.tier.stats().pending:
        if time.monotonic() > deadline:
            raise HeadraceError("the blocks of a request were not saved in time")
        time.sleep(0.001)
