"""`headrace bench delivery`: the cost of queue, token log and streams alone, measured on the scripted engine.

It runs one embedded Valkey, one API process and one worker, and the client on the same machine.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from headrace.bench.gateway.stream_readers import ANSWER_TOKENS, FLOWING, Reading
from headrace.bench.harness.full_stack import FullStack, cpu_seconds, full_stack
from headrace.bench.harness.report import Spread
from shared.backend import Backend
from shared.errors import HeadraceError
from shared.models.model_store import SCRIPTED
from shared.models.worker_registry import WorkerInfo
from shared.protocol import Request, SamplingParams, Token, TokenEvent, new_job_id
from shared.queue.interface import Room
from shared.redis.embedded import EmbeddedServer
from shared.settings import Settings, load
from shared.token_log.interface import Append

STREAMS = 256
PACE_MS, HALF_PACE_MS = 10, 34  # ms between a stream's tokens: 256 of them make 25,600 and 7,500 tokens/s
DURATION_S = 10
PROBES = 200
SUBMITS = 4000
SUBMITTERS = 32
UNSERVED = "unserved"
BACKLOG = 10_000  # waiting requests, to see whether they make one more request more expensive
SETTINGS = {
    "max_num_seqs": STREAMS,
    "max_model_len": ANSWER_TOKENS + 100,  # with the prompt
    "queue_depth": 100_000,
    "tenant_queue_depth": 100_000,
    "queue_tokens": 10**9,
    "tenant_queue_tokens": 10**9,
}


@dataclass(frozen=True)
class Flow:
    """All streams at once, and the CPU microseconds of each process per token."""

    reading: Reading
    api_us: float
    redis_us: float
    worker_us: float

    @property
    def rate(self) -> float:
        return self.reading.tokens / self.reading.seconds


@dataclass(frozen=True)
class Submits:
    """Jobs accepted over SUBMITTERS connections, and the CPU microseconds of each process per job."""

    rate: float
    api_us: float
    redis_us: float


@dataclass(frozen=True)
class Delivery:
    """All measurements. `to_client` is the time from an append to the client's socket at half load, in seconds."""

    flat_out: Flow
    full: Flow
    half: Flow
    to_client: Spread
    submits: Submits
    submits_late: Submits
    probe_empty: Spread
    probe_late: Spread

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"tokens_per_second": self.full.rate}

    def table(self) -> Table:
        table = Table("", "measured", box=None)
        for name, flow in (("unpaced", self.flat_out), ("paced to 25,600/s", self.full), ("7,500/s", self.half)):
            reading = flow.reading
            table.add_row(f"256 streams, {name}: tokens/s", f"{flow.rate:,.0f}")
            table.add_row("  tokens per frame", f"{reading.tokens / reading.frames:.1f}")
            table.add_row("  between frames, p50 / p99", _pair_ms(reading.gap_p50, reading.gap_p99))
            table.add_row("  CPU per token: API / Redis / worker", _us(flow.api_us, flow.redis_us, flow.worker_us))
        table.add_row("append to client, at 7,500/s, p50 / p99", _pair_ms(self.to_client.p50, self.to_client.p99))
        table.add_row("submits/s", f"{self.submits.rate:,.0f}")
        table.add_row("CPU per submit: API / Redis", _us(self.submits.api_us, self.submits.redis_us))
        late = self.submits_late
        table.add_row(f"submits/s, {BACKLOG:,} waiting", f"{late.rate:,.0f}")
        table.add_row(f"CPU per submit, {BACKLOG:,} waiting", _us(late.api_us, late.redis_us))
        table.add_row("append to client, idle, p50", f"{self.probe_empty.p50 * 1000:.2f} ms")
        table.add_row(f"append to client, {BACKLOG:,} waiting, p50", f"{self.probe_late.p50 * 1000:.2f} ms")
        return table


def _us(*values: float) -> str:
    return " / ".join(f"{value:.1f}" for value in values) + " µs"


def _pair_ms(first: float, second: float) -> str:
    return f"{first * 1000:.1f} / {second * 1000:.1f} ms"


class Bench:
    """Running installation under measurement."""

    def __init__(self, stack: FullStack, server: EmbeddedServer) -> None:
        self._stack = stack
        self._server = server
        self._settings: Settings = load({"redis_url": server.url}).settings

    def flow(self, pace: int) -> tuple[Flow, Spread]:
        """Run 256 streams at a pace; meanwhile, measure the time from an append to a client's socket."""
        command = [sys.executable, "-m", "headrace.bench.gateway.stream_readers", self._stack.url]
        numbers = [str(STREAMS), str(pace), str(DURATION_S)]
        with subprocess.Popen([*command, *numbers], stdout=subprocess.PIPE, text=True) as readers:
            assert readers.stdout is not None
            if readers.stdout.readline().strip() != FLOWING:
                raise HeadraceError("the streams did not start")
            before = self._spent()
            begin = time.perf_counter()
            spread = self.probe(DURATION_S * 0.9)
            after, seconds = self._spent(), time.perf_counter() - begin
            found = Reading(**json.loads(readers.stdout.readline()))
        each = [
            1e6 * (b - a) / seconds / (found.tokens / found.seconds) for a, b in zip(before, after, strict=True)
        ]
        return Flow(found, *each), spread

    def probe(self, seconds: float) -> Spread:
        """Measure the seconds from an append to the client's socket, PROBES times in `seconds`."""
        return Spread.from_values(asyncio.run(self._probe(seconds)))

    def submits(self, count: int) -> Submits:
        asyncio.run(self._announce())
        before, begin = self._spent(), time.perf_counter()
        asyncio.run(self._submit(count))
        seconds = time.perf_counter() - begin
        api, redis, _ = (1e6 * (b - a) / count for a, b in zip(before, self._spent(), strict=True))
        return Submits(count / seconds, api, redis)

    def _spent(self) -> tuple[float, float, float]:
        assert self._server.pid is not None
        redis = cpu_seconds(psutil.Process(self._server.pid))
        return self._stack.cpu_seconds("api"), redis, self._stack.cpu_seconds("worker")

    async def _probe(self, seconds: float) -> list[float]:
        """Act as a worker, on a model that has no other worker."""
        backend = Backend.open(self._settings)
        request = Request(id=new_job_id(), model="probe", prompt="x", params=SamplingParams())
        await backend.token_log.create(request)
        await backend.transport.publish(request)
        await backend.transport.pull(request.model, "probe", Room.all(1))
        [lease] = await backend.token_log.acquire([request.id], "probe")
        assert lease is not None
        parts = urlsplit(self._stack.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(f"GET /v1/jobs/{request.id}/events HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        times = []
        try:
            for seq in range(PROBES):
                await asyncio.sleep(seconds / PROBES)
                sent = time.perf_counter()
                event = TokenEvent(seq, (Token(0, 1, "x"),))
                appending = asyncio.create_task(backend.token_log.append([Append(lease, event, 1)]))
                await reader.readuntil(b"\n\n")
                times.append(time.perf_counter() - sent)
                await appending
        finally:
            writer.close()
            await backend.token_log.close(request.id)
            await backend.close()
        return times

    async def _announce(self) -> None:
        """Register a worker that is gone, so that jobs for its model are accepted and wait."""
        backend = Backend.open(self._settings)
        try:
            await backend.registry.beat(WorkerInfo(id="gone", pid=0, model=UNSERVED, state="ready"))
            async with httpx.AsyncClient(base_url=self._stack.url) as client:
                while UNSERVED not in (await client.get("/v1/models")).text:  # the API looks once a second
                    pass
        finally:
            await backend.close()

    async def _submit(self, count: int) -> None:
        parts = urlsplit(self._stack.url)
        todo = iter(range(count))

        async def submitter() -> None:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            for number in todo:
                body = json.dumps({"model": UNSERVED, "prompt": f"job {number}", "max_tokens": 8}).encode()
                writer.write(b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")
                writer.write(b"content-length: %d\r\n\r\n%b" % (len(body), body))
                head = await reader.readuntil(b"\r\n\r\n")
                if not head.startswith(b"HTTP/1.1 202"):
                    raise HeadraceError(f"a job was refused: {head[:40]!r}")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
            writer.close()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(SUBMITTERS):
                tasks.create_task(submitter())


def measure_delivery(console: Console) -> Delivery:
    """Measure all parts. Raises HeadraceError if a process does not start or a job is refused."""
    with _bench() as bench:
        console.print(f"{STREAMS} streams, unpaced")
        flat_out, _ = bench.flow(0)
    with _bench() as bench:
        console.print(f"{STREAMS} streams, a token every {PACE_MS} ms")
        full, _ = bench.flow(PACE_MS)
    with _bench() as bench:
        console.print(f"{STREAMS} streams at half load")
        half, to_client = bench.flow(HALF_PACE_MS)
    with _bench() as bench:
        console.print("submits")
        probe_empty = bench.probe(4.0)
        submits = bench.submits(SUBMITS)
        bench.submits(BACKLOG)
        submits_late = bench.submits(SUBMITS)
        probe_late = bench.probe(4.0)
    return Delivery(flat_out, full, half, to_client, submits, submits_late, probe_empty, probe_late)


@contextmanager
def _bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        server = EmbeddedServer(Path(folder))
        server.start()
        try:
            with full_stack(SCRIPTED, "--redis-url", server.url, settings=SETTINGS) as stack:
                yield Bench(stack, server)
        finally:
            server.stop()
