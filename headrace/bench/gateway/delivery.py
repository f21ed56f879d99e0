"""`headrace bench delivery`: what queue, log and streams cost by themselves, on the engine without weights.

One embedded Valkey, one API process, one worker, and the client beside them on the same machine.
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

from headrace.bench.gateway.stream_readers import FLOWING, Reading
from headrace.bench.harness.full_stack import WholePath, spent, whole_path
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
PACE, HALF_PACE = 10, 34  # ms between a stream's tokens: 256 of them make 25,600 and 7,500 tokens/s
SECONDS = 10
PROBES = 200
SUBMITS = 4000
SUBMITTERS = 32
UNSERVED = "unserved"
BACKLOG = 10_000  # requests that wait, to see whether one more costs more
SETTINGS = {
    "max_num_seqs": STREAMS,
    "queue_depth": 100_000,
    "tenant_queue_depth": 100_000,
    "queue_tokens": 10**9,
    "tenant_queue_tokens": 10**9,
}


@dataclass(frozen=True)
class Flow:
    """All streams at once, and the microseconds of one core that each process spent on a token."""

    reading: Reading
    api_us: float
    redis_us: float
    worker_us: float

    @property
    def rate(self) -> float:
        return self.reading.tokens / self.reading.seconds


@dataclass(frozen=True)
class Submits:
    """Jobs accepted one after another by SUBMITTERS connections, and one core's microseconds for each."""

    rate: float
    api_us: float
    redis_us: float


@dataclass(frozen=True)
class Delivery:
    """Everything; `to_client` in seconds from the append's sending to the client's socket, at half load."""

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
        for name, flow in (("flat out", self.flat_out), ("25,600/s asked", self.full), ("7,500/s", self.half)):
            reading = flow.reading
            table.add_row(f"256 streams, {name}: tokens/s", f"{flow.rate:,.0f}")
            table.add_row("  tokens in a frame", f"{reading.tokens / reading.frames:.1f}")
            table.add_row("  between frames, p50 / p99", _pair_ms(reading.gap_p50, reading.gap_p99))
            table.add_row("  CPU a token: API / Redis / worker", _us(flow.api_us, flow.redis_us, flow.worker_us))
        table.add_row("append to client, at 7,500/s, p50 / p99", _pair_ms(self.to_client.p50, self.to_client.p99))
        table.add_row("submits/s", f"{self.submits.rate:,.0f}")
        table.add_row("CPU a submit: API / Redis", _us(self.submits.api_us, self.submits.redis_us))
        late = self.submits_late
        table.add_row(f"submits/s, {BACKLOG:,} waiting", f"{late.rate:,.0f}")
        table.add_row("CPU a submit, there", _us(late.api_us, late.redis_us))
        table.add_row("append to client, idle, p50", f"{self.probe_empty.p50 * 1000:.2f} ms")
        table.add_row(f"the same, {BACKLOG:,} waiting", f"{self.probe_late.p50 * 1000:.2f} ms")
        return table


def _us(*values: float) -> str:
    return " / ".join(f"{value:.1f}" for value in values) + " µs"


def _pair_ms(first: float, second: float) -> str:
    return f"{first * 1000:.1f} / {second * 1000:.1f} ms"


class Bench:
    """One running installation under measurement."""

    def __init__(self, path: WholePath, server: EmbeddedServer) -> None:
        self._path = path
        self._server = server
        self._settings: Settings = load({"redis_url": server.url}).settings

    def flow(self, pace: int) -> tuple[Flow, Spread]:
        """256 streams at that pace, and meanwhile the time from an append to a client's socket."""
        command = [sys.executable, "-m", "headrace.bench.gateway.stream_readers", self._path.url]
        numbers = [str(STREAMS), str(pace), str(SECONDS)]
        with subprocess.Popen([*command, *numbers], stdout=subprocess.PIPE, text=True) as readers:
            assert readers.stdout is not None
            if readers.stdout.readline().strip() != FLOWING:
                raise HeadraceError("the streams did not begin to flow")
            before = self._spent()
            begin = time.perf_counter()
            spread = self.probe(SECONDS * 0.9)
            after, seconds = self._spent(), time.perf_counter() - begin
            found = Reading(**json.loads(readers.stdout.readline()))
        each = [
            1e6 * (b - a) / seconds / (found.tokens / found.seconds) for a, b in zip(before, after, strict=True)
        ]
        return Flow(found, *each), spread

    def probe(self, seconds: float) -> Spread:
        """Seconds from an append's sending to the client's socket, one every so often."""
        return Spread.of(asyncio.run(self._probe(seconds)))

    def submits(self, count: int) -> Submits:
        asyncio.run(self._announce())
        before, begin = self._spent(), time.perf_counter()
        asyncio.run(self._submit(count))
        seconds = time.perf_counter() - begin
        api, redis, _ = (1e6 * (b - a) / count for a, b in zip(before, self._spent(), strict=True))
        return Submits(count / seconds, api, redis)

    def _spent(self) -> tuple[float, float, float]:
        assert self._server.pid is not None
        redis = spent(psutil.Process(self._server.pid))
        return self._path.cpu_seconds("api"), redis, self._path.cpu_seconds("worker")

    async def _probe(self, seconds: float) -> list[float]:
        """As a worker of its own, on a model that nobody else serves."""
        backend = Backend.open(self._settings)
        request = Request(id=new_job_id(), model="probe", prompt="x", params=SamplingParams())
        await backend.token_log.create(request)
        await backend.transport.publish(request)
        await backend.transport.pull(request.model, "probe", Room.all(1))
        [lease] = await backend.token_log.acquire([request.id], "probe")
        assert lease is not None
        parts = urlsplit(self._path.url)
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
        """A model that nobody serves now, but did: its jobs wait."""
        backend = Backend.open(self._settings)
        try:
            await backend.registry.beat(WorkerInfo(id="gone", pid=0, model=UNSERVED, state="ready"))
            async with httpx.AsyncClient(base_url=self._path.url) as client:
                while UNSERVED not in (await client.get("/v1/models")).text:  # it asks once a second
                    pass
        finally:
            await backend.close()

    async def _submit(self, count: int) -> None:
        parts = urlsplit(self._path.url)
        todo = iter(range(count))

        async def submitter() -> None:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            for number in todo:
                body = json.dumps({"model": UNSERVED, "prompt": f"job {number}", "max_tokens": 8}).encode()
                writer.write(b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")
                writer.write(b"content-length: %d\r\n\r\n%b" % (len(body), body))
                answered = await reader.readuntil(b"\r\n\r\n")
                if not answered.startswith(b"HTTP/1.1 202"):
                    raise HeadraceError(f"a job was refused: {answered[:40]!r}")
                length = int(answered.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
            writer.close()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(SUBMITTERS):
                tasks.create_task(submitter())


def measure_delivery(console: Console) -> Delivery:
    """Raises HeadraceError where a part cannot be started or a job is refused."""
    with _bench() as bench:
        console.print(f"{STREAMS} streams, flat out")
        flat_out, _ = bench.flow(0)
    with _bench() as bench:
        console.print(f"{STREAMS} streams, a token every {PACE} ms")
        full, _ = bench.flow(PACE)
    with _bench() as bench:
        console.print(f"{STREAMS} streams at half load")
        half, to_client = bench.flow(HALF_PACE)
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
            with whole_path(SCRIPTED, "--redis-url", server.url, settings=SETTINGS) as path:
                yield Bench(path, server)
        finally:
            server.stop()
