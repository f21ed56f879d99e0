"""`python -m headrace.bench.worker.null_model MODEL SEQUENCES STEP_MS SAMPLING`: a worker's cost beside the model.

Engine, scheduler, sampler, detokenizer, worker and token log are those of production, with an embedded Valkey. Only
the model is replaced, by one that returns rows of logits that were made before.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import torch
import uvloop
from torch import Tensor

from headrace.bench.engine.perplexity_texts import licence_text
from headrace.bench.harness.full_stack import cpu_seconds
from headrace.bench.harness.subprocess_run import run_in_subprocess
from headrace.bench.worker.cost import ROWS, Cost, NullModel
from shared.backend import Backend
from shared.models.model_store import ModelRepository
from shared.models.worker_registry import WorkerInfo
from shared.protocol import Request, SamplingParams, new_job_id
from shared.redis.embedded import EmbeddedServer
from shared.runtime.gc_tuning import settle
from shared.settings import Settings, load
from workers.engine import token_step
from workers.engine.config import EngineConfig
from workers.engine.engine import Engine
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.interface import EngineOutput
from workers.engine.kernels.select import choose_kernels
from workers.engine.model_runner import Runner
from workers.engine.models.loader import read_model_config
from workers.engine.sampling.torch_rows import TorchRows
from workers.engine.scheduling.scheduled_batch import ScheduledBatch
from workers.engine.sequence import Sequence
from workers.engine.speculation.load import load_speculator
from workers.engine.text.tokenizer import Tokenizer
from workers.metrics import WorkerMetrics
from workers.worker import Worker

DEVICE = "drawn on a device"
SAMPLINGS: dict[str, dict[str, Any]] = {
    DEVICE: {"temperature": 0.8},
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.8},
    "top-p": {"temperature": 0.8, "top_p": 0.95},
}
PROMPT_TOKENS = 64
WARM_STEPS, STEPS = 40, 160
ANSWER_TOKENS = 2 * (WARM_STEPS + STEPS)  # no answer ends while it is measured
ZIPF = 1.6  # exponent of the distribution of a row: 95 % of it is on about 90 tokens
CPU = torch.device("cpu")


def measure_null_model(model: str, sequences: int, step_ms: int) -> NullModel:
    """Measure each kind of sampling in a process of its own."""
    found = {
        name: run_in_subprocess("headrace.bench.worker.null_model", model, sequences, step_ms, name)
        for name in SAMPLINGS
    }
    costs = {name: Cost(**each["cost"]) for name, each in found.items()}
    return NullModel(sequences, next(iter(found.values()))["vocabulary"], costs)


class NullRunner(Runner):
    """Runner whose model takes no time; see `Runner`.

    Args:
        texts: token ids; each row of logits is highest at one of them, so that answers are text.
        seconds: duration of a step, in which the thread sleeps as if it waited for a device.
    """

    device = CPU
    cache = torch.empty(0)

    def __init__(self, texts: list[int], rows: int, vocabulary: int, seconds: float) -> None:
        ranks = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0))
        logits = -ZIPF * (ranks + 1.0).log()
        first = int(logits.argmax())
        self._logits = torch.stack([logits.roll(text - first) for text in texts[:rows]])
        self._views: dict[
            int, list[Tensor]
        ] = {}  # by number of rows: made before, since a slice takes 0.1 ms in a step
        self._seconds = seconds
        self._steps = 0
        self._ended: float | None = None
        self.idle = 0.0

    def run(self, batch: ScheduledBatch, interrupted: Callable[[], bool] | None = None) -> Tensor:
        rows = self._rows(StepInputs.from_batch(batch).sample_rows.shape[0])
        if self._ended is not None:
            self.idle += time.perf_counter() - self._ended
        time.sleep(self._seconds)
        self._ended = time.perf_counter()
        self._steps += 1
        return rows[self._steps % len(rows)]

    def _rows(self, count: int) -> list[Tensor]:
        """Return each `count` successive rows."""
        if count not in self._views:
            starts = range(self._logits.shape[0] - count + 1)
            self._views[count] = [self._logits[start : start + count] for start in starts]
        return self._views[count]


class DrawnRows(TorchRows):
    """Rows whose tokens a device draws, at no cost: the row numbers of a step choose them."""

    def __init__(self, texts: list[int]) -> None:
        self._texts = texts
        self._steps = 0

    def draw(self, logits: Tensor, sequences: list[Sequence]) -> list[int | None]:
        self._steps += 1
        start = self._steps % (len(self._texts) - len(sequences))
        return [*self._texts[start : start + len(sequences)]]


class ThreadParts:
    """CPU seconds by part of one thread. The time of a nested part counts for that part alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = 0.0

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            outer, self._inner = self._inner, 0.0
            begin = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                spent = time.thread_time() - begin
                self.seconds[part] += spent - self._inner
                self._inner = outer + spent

        return run


class Meter:
    """Measures STEPS steps of an engine in a worker, after WARM_STEPS others."""

    def __init__(self, engine: Engine, runner: NullRunner, server: EmbeddedServer) -> None:
        self._engine = engine
        self._runner = runner
        self._server = psutil.Process(server.pid)
        self._loop = asyncio.get_running_loop()
        self._loop_clock = time.pthread_getcpuclockid(threading.get_ident())
        self._parts = ThreadParts()
        self._steps = self._tokens = 0
        self._before: dict[str, float] = {}
        self.appends = 0
        self.cost: Cost | None = None
        self.done = asyncio.Event()

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Time the engine's parts within the block."""
        engine, timed = self._engine, self._parts.timed
        places: list[tuple[Any, str, str]] = [
            (engine._scheduler, "schedule", "schedule"),
            (engine._scheduler, "advance", "schedule"),
            (engine._runner, "run", "inputs"),
            (engine._rows, "draw", ROWS),
            (token_step, "sample", "sample"),
            (engine, "_collect", "detokenize, outputs"),
            (engine, "step", "the rest of a step"),
        ]
        with ExitStack() as patches:
            for owner, name, part in places:
                patches.enter_context(patch.object(owner, name, timed(part, getattr(owner, name))))
            step = engine.step
            patches.enter_context(patch.object(engine, "step", lambda: self._step(step)))
            yield

    def _step(self, step: Callable[[], list[EngineOutput]]) -> list[EngineOutput]:
        self._steps += 1
        if self._steps == WARM_STEPS:
            self._before, self._tokens = self._now(), 0
        outputs = step()
        self._tokens += sum(len(output.tokens) for output in outputs)
        if self._steps == WARM_STEPS + STEPS - 1:
            self._end()
        return outputs

    def _now(self) -> dict[str, float]:
        return {
            **self._parts.seconds,
            "engine": time.thread_time(),
            "loop": time.clock_gettime(self._loop_clock),
            "process": time.process_time(),
            "redis": cpu_seconds(self._server),
            "idle": self._runner.idle,
            "appends": self.appends,
        }

    def _end(self) -> None:
        spent = {name: value - self._before.get(name, 0.0) for name, value in self._now().items()}
        us = {name: value * 1e6 / self._tokens for name, value in spent.items()}
        parts = {name: us[name] for name in self._parts.seconds}
        parts["between steps"] = us["engine"] - sum(parts.values())
        parts["write"] = us["loop"]
        rest = us["process"] - us["engine"] - us["loop"]
        self.cost = Cost(parts, rest, us["idle"], us["redis"], self._tokens / max(1.0, spent["appends"]))
        self._loop.call_soon_threadsafe(self.done.set)


def load_null_engine(settings: Settings, step_s: float, *, draws: bool = True) -> tuple[Engine, NullRunner]:
    """Return an engine like that of `Engine.load`, without its weights and its cache.

    Args:
        draws: it draws tokens from logits; otherwise a device does.
    """
    config = EngineConfig.from_settings(settings, ModelRepository(settings).folder())
    torch.set_num_threads(1)  # so that the engine's thread computes all rows
    model_config = read_model_config(config.model)
    tokenizer = Tokenizer(config.model, **config.tokenizer_options())
    kernels = choose_kernels(config, CPU, torch.float32)
    length = PROMPT_TOKENS + ANSWER_TOKENS
    text = _text_tokens(tokenizer)
    runner = NullRunner(text, 2 * config.max_num_seqs, model_config.vocab_size, step_s)
    engine = Engine(
        config,
        runner,
        tokenizer,
        vocab_size=model_config.vocab_size,
        eos_token_ids=frozenset(model_config.eos_token_ids),
        max_model_len=length,
        num_blocks=config.max_num_seqs * (length // config.block_size + 2),
        computation={},
        speculator=load_speculator(config, model_config.architecture, kernels, CPU),
        rows=kernels.rows() if draws else DrawnRows(text),
    )
    return engine, runner


def _text_tokens(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(licence_text())


async def _measure(settings: Settings, server: EmbeddedServer, step_s: float, sampling: str) -> dict[str, Any]:
    backend = Backend.open(settings)
    engine, runner = load_null_engine(settings, step_s, draws=sampling != DEVICE)
    info = WorkerInfo(id="null-1", pid=1, model="null", state="ready", max_model_len=engine.max_model_len)
    worker = Worker(info, engine, backend, settings, WorkerMetrics())
    meter = Meter(engine, runner, server)
    append = backend.token_log.append

    async def counted(appends: Any) -> list[bool]:
        meter.appends += len(appends)
        return await append(appends)

    text = _text_tokens(engine.tokenizer)
    settle()
    with meter.timing(), patch.object(backend.token_log, "append", counted):
        for number in range(settings.max_num_seqs):
            await _publish(backend, text[number * PROMPT_TOKENS :][:PROMPT_TOKENS], number, SAMPLINGS[sampling])
        running = asyncio.create_task(worker.run())
        finished = asyncio.create_task(meter.done.wait())
        await asyncio.wait((running, finished), return_when=asyncio.FIRST_COMPLETED)
        finished.cancel()
        worker.drain(grace=0)
        await running
    await backend.close()
    assert meter.cost is not None
    return {"cost": asdict(meter.cost), "vocabulary": engine.tokenizer.vocab_size}


async def _publish(backend: Backend, prompt: list[int], seed: int, options: dict[str, Any]) -> None:
    params = SamplingParams(max_tokens=ANSWER_TOKENS, ignore_eos=True, seed=seed, **options)
    created_at = await backend.token_log.now()
    request = Request(id=new_job_id(), model="null", prompt=tuple(prompt), params=params, created_at=created_at)
    await backend.token_log.create(request)
    await backend.transport.publish(request)


def main(model: str, sequences: int, step_ms: int, sampling: str) -> None:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        server = EmbeddedServer(Path(folder))
        server.start()
        try:
            given = {
                "model": model,
                "redis_url": server.local_url,
                "device": "cpu",
                "max_num_seqs": sequences,
                "canary_interval": 0,
            }
            settings = load(given).settings
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                found = runner.run(_measure(settings, server, step_ms / 1000, sampling))
        finally:
            server.stop()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
