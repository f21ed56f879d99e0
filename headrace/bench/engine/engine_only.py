"""`python -m headrace.bench.engine.engine_only MODEL SEED`: the engine alone on the mix, figures as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from headrace.bench.harness.cpu_contention import foreign_load
from headrace.bench.harness.report import EngineOnlyRun, decode_rate
from headrace.bench.harness.workload import CONCURRENCY, WorkItem, make_mix, ttft_mix, warmup_mix
from shared.models.model_store import ModelRepository
from shared.protocol import Message, SamplingParams
from shared.settings import load
from workers.engine.config import EngineConfig
from workers.engine.engine import Engine
from workers.engine.interface import EngineRequest


@dataclass(frozen=True)
class MixRun:
    """Run of requests.

    Attributes:
        tokens: number of output tokens.
        rate: output tokens/s of all requests.
        decode_rate: see `report.decode_rate`.
        waits: seconds to the first token of each request.
    """

    tokens: int
    rate: float
    decode_rate: float | None
    waits: list[float]


def run_mix(engine: Engine, items: Iterable[WorkItem], concurrency: int) -> MixRun:
    """Run requests, `concurrency` at a time."""
    todo = enumerate(items)
    started: dict[str, float] = {}
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    tokens = decoded = 0
    begin = time.perf_counter()

    def add() -> None:
        for number, item in todo:
            started[str(number)] = time.perf_counter()
            prompt = engine.tokenizer.encode_chat([Message("user", item.prompt)])
            params = SamplingParams(max_tokens=item.output_tokens, temperature=0, ignore_eos=True)
            engine.add(EngineRequest(str(number), tuple(prompt), params))
            return

    for _ in range(concurrency):
        add()
    while engine.has_work():
        for output in engine.step():
            if output.error:
                raise output.error
            last[output.job_id] = time.perf_counter()
            tokens += len(output.tokens)
            if output.job_id in first:
                decoded += len(output.tokens)
            else:
                first[output.job_id] = last[output.job_id]
            if output.finished:
                add()
    seconds = time.perf_counter() - begin
    return MixRun(
        tokens,
        tokens / seconds,
        decode_rate(decoded, sum(last[name] - first[name] for name in started)),
        [first[name] - started[name] for name in started],
    )


def load_engine_from_settings(model: str, **given: object) -> Engine:
    """Load an engine with the settings of environment and file, overridden by `given`."""
    settings = load({"model": model, **given}).settings
    return Engine.load(EngineConfig.from_settings(settings, ModelRepository(settings).folder()))


def main(model: str, seed: int) -> None:
    engine = load_engine_from_settings(model)
    run_mix(engine, warmup_mix(seed), 2)
    with foreign_load() as during:
        mix = run_mix(engine, make_mix(seed), CONCURRENCY)
        waits = run_mix(engine, ttft_mix(seed), 1).waits
    found = EngineOnlyRun(mix.tokens, mix.rate, waits, during.share)
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
