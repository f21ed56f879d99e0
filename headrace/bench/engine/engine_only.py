"""`python -m headrace.bench.engine.engine_only MODEL SEED`: the engine alone on the mix, figures as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict

from headrace.bench.harness.cpu_contention import foreign_load
from headrace.bench.harness.report import EngineOnlyRun
from headrace.bench.harness.workload import CONCURRENCY, WorkItem, make_mix, ttft_mix, warmup_mix
from shared.models.model_store import ModelRepository
from shared.protocol import Message, SamplingParams
from shared.settings import load
from workers.engine.config import EngineConfig
from workers.engine.engine import Engine
from workers.engine.interface import EngineRequest


def run_mix(engine: Engine, items: Iterable[WorkItem], concurrency: int) -> tuple[int, float, list[float]]:
    """Run requests, `concurrency` at a time.

    Returns the output tokens, the tokens/s, and the seconds to each request's first token.
    """
    todo = enumerate(items)
    started: dict[str, float] = {}
    first: dict[str, float] = {}
    tokens = 0
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
            tokens += len(output.tokens)
            first.setdefault(output.job_id, time.perf_counter())
            if output.finished:
                add()
    seconds = time.perf_counter() - begin
    return tokens, tokens / seconds, [first[name] - started[name] for name in started]


def load_engine_from_settings(model: str, **given: object) -> Engine:
    """Load an engine with the settings of environment and file, overridden by `given`."""
    settings = load({"model": model, **given}).settings
    return Engine.load(EngineConfig.from_settings(settings, ModelRepository(settings).folder()))


def main(model: str, seed: int) -> None:
    engine = load_engine_from_settings(model)
    run_mix(engine, warmup_mix(seed), 2)
    with foreign_load() as during:
        tokens, rate, _ = run_mix(engine, make_mix(seed), CONCURRENCY)
        _, _, waits = run_mix(engine, ttft_mix(seed), 1)
    found = EngineOnlyRun(tokens, rate, waits, during.share)
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
