"""Part `lines` of `headrace bench batch`: requests as a batch, and the same requests directly queued, in pairs.

The scripted engine takes a fixed time per token, so that the difference is the cost of the batch: its validation,
its window, its files. Occupancy is the mean share of the worker's seats that are taken.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from headrace.bench.harness.cpu_contention import foreign_load
from headrace.bench.harness.full_stack import full_stack
from producer_api.batch_runner.completion_listener import CompletionListener
from shared.backend import Backend
from shared.errors import HeadraceError
from shared.protocol import Message, PriorityClass, Request, SamplingParams, new_job_id
from shared.redis.embedded import EmbeddedServer
from shared.settings import Settings, load

MODEL, CHAT = "scripted", "/v1/chat/completions"
SEATS, TOKENS = 64, 40  # sequences at a time, tokens of an answer
MAX_CONCURRENT_SUBMITS = 64
TIMEOUT_S = 300.0
POLL_S = 0.05


@dataclass(frozen=True)
class Run:
    """One side: seconds from the first submit to the last answer, and the mean share of seats taken."""

    seconds: float
    occupancy: float


@dataclass(frozen=True)
class Pair:
    straight: Run
    batch: Run
    foreign: float

    @property
    def ratio(self) -> float:
        return self.batch.seconds / self.straight.seconds


@dataclass(frozen=True)
class BatchCost:
    """All pairs, and the medians over them."""

    lines: int
    pairs: list[Pair]

    def as_dict(self) -> dict[str, Any]:
        return {
            "lines": self.lines,
            "pairs": [asdict(pair) for pair in self.pairs],
            "ratio": statistics.median(pair.ratio for pair in self.pairs),
            "occupancy": statistics.median(pair.batch.occupancy for pair in self.pairs),
        }

    def table(self) -> Table:
        table = Table("pair", "direct", "seats taken", "batch", "seats taken", "ratio", "foreign load")
        for number, pair in enumerate(self.pairs, 1):
            table.add_row(
                str(number),
                f"{pair.straight.seconds:.2f} s",
                f"{pair.straight.occupancy:.1%}",
                f"{pair.batch.seconds:.2f} s",
                f"{pair.batch.occupancy:.1%}",
                f"{pair.ratio:.3f}",
                f"{pair.foreign:.1%}",
            )
        found = self.as_dict()
        table.add_section()
        table.add_row("median", "", "", "", f"{found['occupancy']:.1%}", f"{found['ratio']:.3f}", "")
        return table


def measure_batches(lines: int, pace: int, repeats: int, console: Console) -> BatchCost:
    """Measure `repeats` pairs. Raises HeadraceError if answers are missing.

    Args:
        pace: milliseconds per token of the engine.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        server = EmbeddedServer(Path(folder))
        server.start()
        own = {"redis_url": server.url, "queue_depth": lines, "tenant_queue_depth": lines, "max_num_seqs": SEATS}
        try:
            with full_stack(MODEL, settings=own) as stack:
                settings = load({**own, "model": MODEL}).settings
                return asyncio.run(_pairs(settings, stack.url, _prompts(lines, pace), repeats, console))
        finally:
            server.stop()


async def _pairs(settings: Settings, url: str, prompts: list[str], repeats: int, console: Console) -> BatchCost:
    backend = Backend.open(settings)
    pairs = []
    try:
        await _run_direct(backend, prompts[:SEATS])  # warms up connections and Lua scripts
        await _run_batch(url, prompts[:SEATS])
        for number in range(repeats):
            console.print(f"pair {number + 1} of {repeats}")
            with foreign_load() as during:
                straight = await _measure(backend, _run_direct(backend, prompts))
                batch = await _measure(backend, _run_batch(url, prompts))
            pairs.append(Pair(straight, batch, during.share))
    finally:
        await backend.close()
    return BatchCost(len(prompts), pairs)


async def _measure(backend: Backend, work: Coroutine[Any, Any, None]) -> Run:
    taken: list[float] = []

    async def sample_occupancy() -> None:
        while True:
            taken.append((await backend.transport.depth(MODEL)).held / SEATS)
            await asyncio.sleep(POLL_S)

    sampling = asyncio.create_task(sample_occupancy())
    started = time.perf_counter()
    try:
        await asyncio.wait_for(work, TIMEOUT_S)
        seconds = time.perf_counter() - started
    finally:
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)
    busy = [i for i, share in enumerate(taken) if share]
    return Run(seconds, statistics.fmean(min(1.0, share) for share in taken[busy[0] : busy[-1] + 1]))


async def _run_direct(backend: Backend, prompts: list[str]) -> None:
    """Put all requests into the queue as fast as possible, and wait for their ends as a batch does."""
    room = asyncio.Semaphore(MAX_CONCURRENT_SUBMITS)
    async with _completion_listener(backend) as ends, asyncio.TaskGroup() as group:
        for prompt in prompts:
            group.create_task(_run_request(backend, ends, room, prompt))


async def _run_request(backend: Backend, ends: CompletionListener, room: asyncio.Semaphore, prompt: str) -> None:
    job_id = new_job_id()
    with ends.waiting_for(job_id) as completion:
        async with room:
            request = Request(
                id=job_id,
                model=MODEL,
                messages=(Message("user", prompt),),
                params=SamplingParams(max_tokens=TOKENS),
                priority=PriorityClass.BATCH,
                created_at=await backend.token_log.now(),
            )
            await backend.token_log.create(request, notify=ends.channel)
            completion.admitted = True
            await backend.transport.publish(request)
        await completion.ended


@asynccontextmanager
async def _completion_listener(backend: Backend) -> AsyncIterator[CompletionListener]:
    ends = CompletionListener(backend.token_log, backend.live)
    listening = asyncio.create_task(ends.run())
    try:
        yield ends
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def _run_batch(url: str, prompts: list[str]) -> None:
    """Upload the file, run the batch, and wait for its output file."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        content = b"".join(json.dumps(_line(prompt)).encode() + b"\n" for prompt in prompts)
        file = await http.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"})
        body = {"input_file_id": file.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
        batch = (await http.post("/v1/batches", json=body)).json()
        while not batch["output_file_id"]:
            if batch["status"] == "failed":
                raise HeadraceError(f"the batch failed: {batch['errors']}")
            await asyncio.sleep(POLL_S)
            batch = (await http.get(f"/v1/batches/{batch['id']}")).json()
    if batch["request_counts"] != {"total": len(prompts), "completed": len(prompts), "failed": 0}:
        raise HeadraceError(f"not every line was answered: {batch['request_counts']}")


def _line(prompt: str) -> dict[str, Any]:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": TOKENS,
    }
    return {"custom_id": prompt, "method": "POST", "url": CHAT, "body": body}


def _prompts(number: int, pace: int) -> list[str]:
    return [f"[pace {pace}] request {index}" for index in range(number)]
