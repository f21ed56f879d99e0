"""`python -m headrace.bench.gateway.stream_readers URL STREAMS PACE SECONDS`: many native streams at once.

It prints a line when all streams run and it begins to count, and its figures as JSON after `SECONDS`. The client is
as light as possible, since on a small machine it shares the cores with the server: it counts the tokens of a frame
by the frame's id, and keeps no text.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

import httpx
import uvloop

from headrace.bench.harness.report import percentile

READ_BYTES = 65_536
SETTLE_S = 3.0  # in which the streams catch up with the tokens generated before they were read
ANSWER_TOKENS = 32_000  # more than are read in a run
FLOWING = "flowing"
ID = re.compile(rb"^id: (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Reading:
    """Totals of all streams while they were counted. Times are in seconds; gaps are between frames of one stream.

    A frame is one append to the token log; it may hold several tokens.
    """

    tokens: int
    frames: int
    seconds: float
    gap_p50: float
    gap_p99: float


@dataclass
class _Count:
    counting: bool = False
    tokens: int = 0
    frames: int = 0
    gaps: list[float] = field(default_factory=list)


async def _read(host: str, port: int, path: str, count: _Count) -> None:
    """Read one stream until cancelled. Raises ConnectionError if it breaks off."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
        rest, seen, last = b"", -1, 0.0
        while data := await reader.read(READ_BYTES):
            rest += data
            whole = rest.rfind(b"\n\n") + 1
            seqs = ID.findall(rest[:whole])
            rest = rest[whole:]
            if seqs:
                now, seq = time.perf_counter(), int(seqs[-1])
                if seq == ANSWER_TOKENS:  # the connection stays open
                    break
                if count.counting:
                    count.tokens += seq - seen
                    count.frames += len(seqs)
                    count.gaps.append(now - last)
                seen, last = seq, now
        raise ConnectionError("a stream ended too early")
    finally:
        writer.close()


async def run(url: str, streams: int, pace: int, seconds: int) -> Reading:
    """Submit `streams` jobs with a token every `pace` ms (0: unpaced), and read all their streams."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    paths, count = [], _Count()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for number in range(streams):
            prompt = f"stream {number}" + (f" [pace {pace}]" if pace else "")
            body = {"model": "scripted", "prompt": prompt, "max_tokens": ANSWER_TOKENS}
            job = (await client.post("/v1/jobs", json=body)).raise_for_status().json()
            paths.append(job["links"]["events"])
    async with asyncio.TaskGroup() as tasks:
        reading = [tasks.create_task(_read(host, port, path, count)) for path in paths]
        await asyncio.sleep(SETTLE_S)
        print(FLOWING, flush=True)
        count.counting, begin = True, time.perf_counter()
        await asyncio.sleep(seconds)
        count.counting, cpu_seconds = False, time.perf_counter() - begin
        for task in reading:
            task.cancel()
    gaps = sorted(count.gaps)
    return Reading(count.tokens, count.frames, cpu_seconds, percentile(gaps, 0.5), percentile(gaps, 0.99))


def main(url: str, streams: str, pace: str, seconds: str) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(asdict(runner.run(run(url, int(streams), int(pace), int(seconds))))))


if __name__ == "__main__":
    main(*sys.argv[1:])
