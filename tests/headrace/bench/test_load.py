"""Load client against servers that behave and servers that fail."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import time
from types import SimpleNamespace

import pytest

from headrace.bench.harness import load as load_module
from headrace.bench.harness import timed_stream as stream_module
from headrace.bench.harness.load import Load, Target, drive, send
from headrace.bench.harness.timed_stream import Sample
from shared.errors import ConfigError
from tests.support.fake_openai_server import (
    ANSWER,
    USAGE,
    FakeServer,
    Respond,
    answer,
    chunked,
    cut,
    sending,
    text,
    work,
)
from tests.support.waiting import LIMIT_S


async def run(server: FakeServer, count: int, load: Load, **target: object) -> list[Sample]:
    samples: list[Sample] = []
    async with asyncio.timeout(LIMIT_S):
        await drive(server.target(**target), work(count), load, samples.append)
    return samples


def once_all_are_there(count: int, then: Respond = answer) -> Respond:
    """Return a handler that answers no request until `count` requests wait."""
    barrier = asyncio.Barrier(count)

    async def respond(number: int, writer: asyncio.StreamWriter) -> None:
        await barrier.wait()
        await then(number, writer)

    return respond


async def test_a_closed_loop_keeps_its_concurrency(server):
    """Given a server that answers when three requests wait,
    If three clients send twelve,
    all are answered, and there is never a fourth at once.
    """
    server.respond = once_all_are_there(3)

    samples = await run(server, 12, Load(concurrency=3))

    assert [sample.error for sample in samples] == [None] * 12
    assert sum(sample.output_tokens for sample in samples) == 24
    assert server.most_open == 3


async def test_an_open_loop_does_not_wait_for_answers(server):
    """Given a server that answers when all twenty wait, all requests of an open loop are answered."""
    server.respond = once_all_are_there(20)

    samples = await run(server, 20, Load(rate=2000))

    assert [sample.error for sample in samples] == [None] * 20


async def test_a_stall_counts_in_the_latencies(server, monkeypatch):
    """Given a stall of 300 s while requests are due,
    If they arrive in an open loop,
    the schedule stays as seeded, and the stall is part of the time to first token.
    """
    stalled = 0.0
    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + stalled)
    for module in (load_module, stream_module):
        monkeypatch.setattr(module, "time", clock)

    async def stall(number: int, writer: asyncio.StreamWriter) -> None:
        nonlocal stalled
        stalled = 300.0  # from the first request on
        await answer(number, writer)

    server.respond = stall
    samples = sorted(await run(server, 10, Load(rate=200, seed=3)), key=lambda sample: sample.scheduled)

    chance = random.Random(3)
    due = [0.0, *itertools.accumulate(chance.expovariate(200) for _ in range(9))]
    offsets = [sample.scheduled - samples[0].scheduled for sample in samples]
    assert offsets == pytest.approx(due, abs=1e-6)
    assert due[-1] < 300
    assert all(sample.arrivals[0] - sample.scheduled >= 300 - at for sample, at in zip(samples, due, strict=True))


async def test_an_open_loop_bounds_what_is_in_flight(server, monkeypatch):
    """Given room for two and a server that answers when two wait, six simultaneous requests give four errors."""
    monkeypatch.setattr(load_module, "MAX_IN_FLIGHT", 2)
    server.respond = once_all_are_there(2)

    samples = await run(server, 6, Load(rate=1e9))

    assert sorted(str(sample.error) for sample in samples) == ["None"] * 2 + ["too many in flight"] * 4


@pytest.mark.parametrize("load", [Load(concurrency=2, seconds=0.2), Load(rate=100, seconds=0.2)])
async def test_a_duration_ends_endless_work(server, load, monkeypatch):
    """Given endless work and a duration, the loop ends after it, and each started request is answered."""
    samples: list[Sample] = []
    looks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(looks) / 1000)  # a millisecond passes at each look
    monkeypatch.setattr(load_module, "time", clock)
    async with asyncio.timeout(LIMIT_S):
        await drive(server.target(), itertools.cycle(work(1)), load, samples.append)
    assert len(samples) > 1
    assert all(sample.error is None for sample in samples)
    assert all(sample.scheduled < 0.2 + 0.002 for sample in samples)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", "HTTP 503"),
        (chunked(text("a"), b'data: {"error": {"code": "engine_failed"}}\n\n'), "stream error engine_failed"),
        (cut(text("a")), "connection cut"),
        (b"", "connection cut"),
        (cut(text("a"), USAGE), "connection cut"),
    ],
)  # fmt: skip
async def test_failures_are_counted_and_do_not_block_others(server, data, kind):
    """Given a server that fails every third request, these are errors, and the others are answered."""

    async def respond(number: int, writer: asyncio.StreamWriter) -> None:
        await sending(data if number % 3 == 0 else ANSWER)(number, writer)

    server.respond = respond
    samples = await run(server, 9, Load(concurrency=2))

    errors = sorted(str(sample.error) for sample in samples)
    assert errors == sorted([kind] * 3 + ["None"] * 6)


async def test_a_silent_server_is_a_timeout(server):
    """Given a server that does not answer, or stops in the middle of an answer, both are timeouts."""

    async def respond(number: int, writer: asyncio.StreamWriter) -> None:
        if number:
            writer.write(cut(text("a")))
            await writer.drain()
        await asyncio.Event().wait()

    server.respond = respond
    samples = await run(server, 2, Load(concurrency=1), timeout=0.2)

    assert [sample.error for sample in samples] == ["timeout", "timeout"]


async def test_a_refused_connection_is_an_error_per_request():
    """Given a port without a listener, each request has that kind of error."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = Target(f"http://127.0.0.1:{unused.getsockname()[1]}", "fake")
        sample = await send(target, work(1)[0], 0.0)

    assert sample.error == "ConnectionRefusedError"


async def test_requests_have_the_form_of_their_api(server):
    """Given each API, requests have its path and body, and force lengths only on demand."""
    await run(server, 1, Load(concurrency=1), extra={"ignore_eos": True})
    await run(server, 1, Load(concurrency=1), api="completions")

    chat, completion = server.bodies
    assert server.paths == ["/v1/chat/completions", "/v1/completions"]
    assert chat["messages"] == [{"role": "user", "content": "secret prompt 0"}]
    assert completion["prompt"] == "secret prompt 0"
    assert (chat["max_tokens"], chat["stream_options"]) == (2, {"include_usage": True})
    assert (chat.get("ignore_eos"), completion.get("ignore_eos")) == (True, None)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x:99999", "http://[::1"])
def test_an_invalid_url_is_refused(url):
    """Given something other than an http address, a ConfigError is raised."""
    with pytest.raises(ConfigError):
        _ = Target(url, "fake").endpoint


@pytest.mark.parametrize(
    ("url", "path", "authority"),
    [
        ("http://h:1", "/v1/chat/completions", "h:1"),
        ("http://h:1/v1/", "/v1/chat/completions", "h:1"),
        ("http://me:secret@h/prefix/v1", "/prefix/v1/chat/completions", "h"),
        ("http://[::1]:8", "/v1/chat/completions", "[::1]:8"),
    ],
)
def test_an_address_may_carry_a_path(url, path, authority):
    """Given addresses as people paste them, the API's path is below them, and no header has the password."""
    endpoint = Target(url, "fake").endpoint

    assert (endpoint.path, endpoint.authority) == (path, authority)
