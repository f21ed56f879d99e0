"""`headrace bench speculation`: tokens per second with and without speculation, in turns, in one engine.

Each pair runs the same requests both ways, and their answers must be the same. One more run has drafts that are
always right: no drafter can gain more with the same kernels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from headrace.bench.engine.drafting.perfect_drafts import PerfectDrafter, steps_of_copies
from headrace.bench.engine.drafting.tasks import TASKS, Task
from headrace.bench.engine.engine_driver import load_engine
from headrace.bench.harness.cpu_contention import foreign_load
from shared.errors import ConfigError, HeadraceError
from workers.engine.config import EngineConfig
from workers.engine.engine import Engine
from workers.engine.interface import EngineRequest
from workers.engine.speculation.speculator import Speculator
from workers.engine.speculation.step_costs import StepCosts

ROUNDS = 2  # requests of each stream in a run
KNOWN_TOKENS = 2  # by which a drafter finds what to copy


@dataclass(frozen=True)
class Run:
    """One run of a task's requests.

    Attributes:
        cpu: CPU seconds of this process.
        steps: steps of the engine.
        drafted, accepted: drafted tokens, and those of them that were right.
    """

    tokens: int
    seconds: float
    cpu: float
    steps: int
    drafted: int
    accepted: int


@dataclass
class Comparison:
    """Pairs of runs, without and with speculation, of one task at a number of streams.

    Attributes:
        perfect: CPU time without speculation, over that with drafts that are always right.
        copied: tokens per step of the best drafts that copy what follows two tokens elsewhere.
    """

    task: str
    streams: int
    pairs: list[tuple[Run, Run]] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)
    perfect: float = 0.0
    copied: float = 0.0

    def ratios(self, by: str) -> list[float]:
        """Return the gain in `seconds`, `cpu` or `steps` of each pair, in order of size."""
        return sorted(getattr(off, by) / getattr(on, by) for off, on in self.pairs)

    def as_dict(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "streams": self.streams,
            "pairs": [[asdict(off), asdict(on)] for off, on in self.pairs],
            "foreign": self.foreign,
            "gain": statistics.median(self.ratios("seconds")),
            "gain_cpu": statistics.median(self.ratios("cpu")),
            "perfect_cpu": self.perfect,
            "copied_tokens_per_step": self.copied,
        }


@dataclass
class Speculation:
    comparisons: list[Comparison]

    def as_dict(self) -> dict[str, Any]:
        return {"comparisons": [each.as_dict() for each in self.comparisons]}

    def table(self) -> Table:
        table = Table("task", "streams", "gain in time", "in CPU time", "in steps", "accepted", "foreign load")
        table.add_column("CPU, perfect drafts")
        table.add_column("steps, best copies")
        for each in self.comparisons:
            drafted = sum(on.drafted for _, on in each.pairs)
            accepted = sum(on.accepted for _, on in each.pairs)
            table.add_row(
                *(each.task, str(each.streams)),
                *(_spread(each.ratios(by)) for by in ("seconds", "cpu", "steps")),
                f"{accepted} of {drafted}",
                *(f"{max(each.foreign):.0%}", f"{each.perfect:.2f}", f"{each.copied:.2f}"),
            )
        return table


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"


def measure_speculation(
    model: str, tasks: Sequence[str], streams: Sequence[int], repeats: int, console: Console, **settings: Any
) -> Speculation:
    """Measure `repeats` pairs of each task at each number of streams.

    Raises:
        ConfigError: the engine does not speculate with this model on this machine.
        HeadraceError: an answer differs with speculation.
    """
    engine = load_engine(model, max_num_seqs=max(streams), prefix_caching=False, **settings)
    if engine.speculator is None:
        raise ConfigError("this engine does not speculate; its log says why", param="speculation")
    found = [Comparison(task.name, count) for count in streams for task in TASKS if task.name in tasks]
    by_name = {task.name: task for task in TASKS}
    for each in found:
        _run_pair(engine, by_name[each.task], each.streams, -1)
        for number in range(repeats):
            console.print(f"{each.task}, {each.streams} streams, pair {number + 1} of {repeats}")
            with foreign_load() as during:
                pair = _run_pair(engine, by_name[each.task], each.streams, number)
            each.pairs.append(pair)
            each.foreign.append(during.share)
        each.perfect, each.copied = _bounds(engine, by_name[each.task], each.streams)
    return Speculation(found)


def _bounds(engine: Engine, task: Task, streams: int) -> tuple[float, float]:
    """Return the gain in CPU time of drafts that are always right, and the tokens per step of the best copies."""
    speculator, most, numbers = engine.speculator, EngineConfig.max_draft_tokens, range(streams * ROUNDS)
    engine.speculator = None
    requests = task.requests(engine, numbers, "plain")
    plain, answers = _run(engine, requests, streams)
    again = task.requests(engine, numbers, "perfect")
    known = {request.id: answer for request, answer in zip(again, answers, strict=True)}
    engine.speculator = Speculator((PerfectDrafter(known),), StepCosts(), most)
    perfect, _ = _run(engine, again, streams)
    engine.speculator = speculator
    pairs = zip(requests, answers, strict=True)
    steps = sum(steps_of_copies(request.prompt, answer, most, KNOWN_TOKENS) for request, answer in pairs)
    return plain.cpu / perfect.cpu, plain.tokens / steps


def _run_pair(engine: Engine, task: Task, streams: int, pair: int) -> tuple[Run, Run]:
    """Run the requests of a pair, which has its own, both ways; the first pair has the number -1."""
    speculator, count = engine.speculator, streams * ROUNDS
    numbers = range((pair + 1) * count, (pair + 2) * count)
    runs: dict[bool, Run] = {}
    answers: dict[bool, list[list[int]]] = {}
    for speculates in (True, False) if pair % 2 else (False, True):
        engine.speculator = speculator if speculates else None
        requests = task.requests(engine, numbers, f"{pair}-{speculates}")
        runs[speculates], answers[speculates] = _run(engine, requests, streams)
    engine.speculator = speculator
    if answers[True] != answers[False]:
        raise HeadraceError(f"an answer of the task {task.name} differs with speculation")
    return runs[False], runs[True]


def _run(engine: Engine, requests: list[EngineRequest], streams: int) -> tuple[Run, list[list[int]]]:
    """Run requests, `streams` at a time. Return the run and each request's token ids."""
    places = {request.id: place for place, request in enumerate(requests)}
    answers: list[list[int]] = [[] for _ in requests]
    before = engine.stats().speculation
    todo = iter(requests)
    began, cpu, steps, running = time.perf_counter(), time.process_time(), 0, 0
    while True:
        while running < streams and (request := next(todo, None)) is not None:
            engine.add(request)
            running += 1
        if not running:
            break
        steps += 1
        for output in engine.step():
            if output.error is not None:
                raise output.error
            answers[places[output.job_id]] += [token.id for token in output.tokens]
            running -= output.finished
    seconds, cpu, after = time.perf_counter() - began, time.process_time() - cpu, engine.stats().speculation
    return Run(
        tokens=sum(map(len, answers)),
        seconds=seconds,
        cpu=cpu,
        steps=steps,
        drafted=max(0, after.draft_tokens - before.draft_tokens),
        accepted=max(0, sum(after.accepted) - sum(before.accepted)),
    ), answers
