"""CPU of a streamed token against another server: figures of a run, and errors."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator

import psutil
import pytest
from rich.console import Console

from headrace.bench.gateway import gateway_streams
from headrace.bench.gateway.gateway_streams import Pair, Run, Server, StreamCost, _run, measure_streams
from shared.errors import ConfigError, HeadraceError
from tests.support.fake_openai_server import DONE, FakeServer, Respond, chunked, text

CONSOLE = Console(file=io.StringIO())


def pair(ours: float, theirs: float, *, concurrency: int = 1) -> Pair:
    return Pair(concurrency, Run(0.002, ours, 3e-5, 20, 1), Run(0.004, theirs, 0.0, 15, 0.9), 0.01)


def test_medians_are_per_concurrency() -> None:
    """Given a pair from a slow period of the machine, ratios are medians of the pairs' ratios, by concurrency."""
    cost = StreamCost([pair(4e-5, 8e-5), pair(9e-5, 9e-5), pair(6e-5, 1e-4), pair(1e-5, 4e-5, concurrency=16)])
    medians = cost.as_dict()["medians"]
    assert medians[1]["ratio"] == pytest.approx(0.6)
    assert (medians[1]["token"], medians[1]["token_vllm"]) == (6e-5, 9e-5)
    assert medians[16]["ratio"] == pytest.approx(0.25)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(cost.table())
    assert "16, median" in shown.get()


def test_the_error_says_how_to_install_vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for against in ("vllm", "hf"):
        with pytest.raises(ConfigError, match="scripts/peers vllm"):
            measure_streams("smollm2", against, [1], 1, 0, CONSOLE)


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Fake CPU seconds of the API process, one figure for each reading."""
    figures: list[float] = []
    monkeypatch.setattr(gateway_streams, "cpu_seconds", lambda process: figures.pop(0))
    monkeypatch.setattr(gateway_streams, "SETTLE_S", 0.0)
    yield figures
    assert not figures


def requested_tokens(server: FakeServer) -> Respond:
    """Return a handler that answers in two events, with the requested number of tokens in the usage."""

    async def respond(number: int, writer: asyncio.StreamWriter) -> None:
        usage = b'{"prompt_tokens": 7, "completion_tokens": %d}' % server.bodies[number]["max_tokens"]
        writer.write(chunked(text("a"), text("b"), b'data: {"choices": [], "usage": %b}\n\n' % usage, DONE))

    return respond


async def test_token_cost_excludes_the_cost_of_the_request(server: FakeServer, costs: list[float]) -> None:
    """Given chats of 1 and 64 tokens, and CPU of 1 ms per request and 10 µs per token, both are measured apart."""
    server.respond = requested_tokens(server)
    costs += [0.0, 9.0, 9.0, 9.004, 9.004, 9.004 + 0.004 + 4 * 63 * 1e-5]
    side = Server(server.target(), psutil.Process())
    run = await asyncio.to_thread(_run, side, 2, 0, CONSOLE)
    assert run.request == pytest.approx(0.001)
    assert run.token == pytest.approx(1e-5)
    assert (run.redis_token, run.events) == (0.0, pytest.approx(2 / 64))
    assert len(server.bodies) == 12


async def test_a_wrong_number_of_tokens_is_refused(server: FakeServer, costs: list[float]) -> None:
    costs += [0.0] * 6
    with pytest.raises(HeadraceError, match="expected 256 output tokens, got 8"):
        await asyncio.to_thread(_run, Server(server.target(), psutil.Process()), 1, 0, CONSOLE)
