"""Overhead benchmark: a fair comparison of the queue with the engine alone."""

from __future__ import annotations

import io
from contextlib import nullcontext
from types import SimpleNamespace

import msgspec
import pytest
from rich.console import Console

from headrace.bench.gateway import overhead, overhead_runtimes
from headrace.bench.gateway.overhead import Overhead, Pair, measure_pair
from headrace.bench.gateway.overhead_runtimes import EXTRA, Subject, send_in_turn
from headrace.bench.harness import cpu_contention
from headrace.bench.harness.full_stack import full_stack
from headrace.bench.harness.load import Target
from headrace.bench.harness.report import EngineOnlyRun, Report, require_complete
from headrace.bench.harness.timed_stream import Sample
from headrace.bench.harness.workload import CONCURRENCY, TTFT_REQUESTS, Lengths, make_mix
from shared.errors import HeadraceError
from shared.protocol import Request, SamplingParams
from tests.support.fake_openai_server import sending, work
from workers.runtimes.upstream.body import BodyWriter
from workers.runtimes.upstream.dialects import DIALECTS
from workers.scripted_engine import ScriptedEngine

MIX = 8  # requests


def pair(bare: float, queue: float, *, added: float = 0.005, foreign: float = 0.0) -> Pair:
    return Pair(bare, queue, 0.080, 0.080 + added, added, 70.0, foreign)


def test_medians_are_of_pairs():
    """Given three pairs, one from a slow period of the machine, the ratio is the median of the pairs' ratios."""
    found = Overhead([pair(100, 95, added=0.004), pair(50, 46, added=0.009), pair(100, 90, added=0.006)])

    assert found.rate_ratio == pytest.approx(0.92)
    assert found.added_ttft == pytest.approx(0.006)


def test_foreign_load_is_reported():
    """Given a pair with foreign load, the report says so, and the pair is neither dropped nor hidden."""
    found = Overhead([pair(100, 95), pair(9, 190, foreign=0.44)])

    assert found.disturbed == "in 1 of 2 pairs, other processes used the cores (up to 44%)"
    assert found.as_dict()["disturbed"]
    assert len(found.as_dict()["pairs"]) == 2
    assert Overhead([pair(100, 95, foreign=0.01)]).disturbed == ""


def test_foreign_load_excludes_own_processes(monkeypatch):
    """Given two cores busy for 3 s together within 2 s, 1 s of it our own, the foreign load is a half."""
    busy, own, clock = iter([10.0, 13.0]), iter([1.0, 2.0]), iter([100.0, 102.0])
    monkeypatch.setattr(cpu_contention, "_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(cpu_contention, "_own_seconds", lambda: next(own))
    monkeypatch.setattr(cpu_contention.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(cpu_contention.psutil, "cpu_count", lambda: 2)

    with cpu_contention.foreign_load() as found:
        pass

    assert found.share == 0.5


def test_an_incomplete_run_is_not_compared():
    """Given a run with failures or a stopped run, neither is compared."""
    failed = Report.from_samples([Sample(0.0, error="HTTP 503")], 1.0)

    with pytest.raises(HeadraceError, match="HTTP 503"):
        require_complete(failed)
    with pytest.raises(KeyboardInterrupt):
        require_complete(Report.from_samples([], 1.0, interrupted=True))


def test_the_engine_side_keeps_its_concurrency():
    """Given an engine that counts its requests, the mix has its exact tokens and never more at once."""
    from headrace.bench.engine.engine_only import run_mix

    engine = ScriptedEngine()
    most = 0
    step = engine.step

    def counting():
        nonlocal most
        most = max(most, engine.stats().running)
        return step()

    engine.step = counting
    items = make_mix(0, outputs=Lengths(1, 20))
    mix = run_mix(engine, items, CONCURRENCY)

    assert mix.tokens == sum(item.output_tokens for item in items)
    assert (most, len(mix.waits)) == (CONCURRENCY, len(items))
    assert mix.rate > 0
    assert all(wait > 0 for wait in mix.waits)


def test_a_bare_upstream_server_chooses_tokens_as_behind_the_queue(monkeypatch):
    """Given a greedy request, the bare server gets the fields that the worker sends."""
    monkeypatch.setattr(overhead_runtimes, "llama_server", lambda *_: nullcontext("http://bare"))
    greedy = Request(id="req_1", model="m", prompt="x", params=SamplingParams(temperature=0.0))
    sent = msgspec.json.decode(BodyWriter(greedy, "m", DIALECTS["llamacpp"]).whole())
    with overhead_runtimes.upstream("smollm2", 0, Console(file=io.StringIO())) as subject:
        assert subject.alone.extra == {**EXTRA, "top_k": sent["top_k"]}


async def test_single_requests_go_to_both_servers_in_turn(server):
    """Given two servers, each request goes to both, one at a time, and each server is first every other time."""
    targets = [Target(server.url, name) for name in ("bare", "queue")]

    waits = await send_in_turn(targets, work(3))

    sent = [(body["model"], body["messages"][0]["content"][-1]) for body in server.bodies]
    assert sent == [
        ("bare", "0"), ("queue", "0"), ("queue", "1"), ("bare", "1"), ("bare", "2"), ("queue", "2"),
    ]  # fmt: skip
    assert server.most_open == 1
    assert [len(each) for each in waits] == [3, 3]

    server.respond = sending(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
    with pytest.raises(HeadraceError, match="503"):
        await send_in_turn(targets, work(1))


@pytest.fixture(scope="module")
def shared_stack():
    """A full stack with the scripted model."""
    with full_stack("scripted") as running:
        yield running


@pytest.fixture
def stack(shared_stack, monkeypatch):
    """The full stack of every pair of the test, with a small mix."""
    monkeypatch.setattr(overhead_runtimes, "make_mix", lambda seed: make_mix(seed, MIX))
    monkeypatch.setattr(overhead, "full_stack", lambda *_, **__: nullcontext(shared_stack))
    return shared_stack


@pytest.mark.parametrize("queue_first", [False, True])
def test_either_server_may_be_the_first(queue_first, monkeypatch):
    """Given two servers, their figures are not exchanged with their turns."""
    rates = {"http://bare": 2.0, "http://queue": 1.0}
    turns = []

    def measure(targets, *_):
        turns.extend(target.url for target in targets)
        return [EngineOnlyRun(7, rates[target.url], [1.0], 0.0) for target in targets]

    running = SimpleNamespace(url="http://queue", rss_mib=lambda _: 1.0)
    monkeypatch.setattr(overhead, "full_stack", lambda *_, **__: nullcontext(running))
    monkeypatch.setattr(overhead, "measure_servers", measure)
    subject = Subject("m", Target("http://bare", "m", extra=EXTRA))
    found = measure_pair(subject, "m", 0, Console(file=io.StringIO()), queue_first=queue_first)
    assert (found.bare_rate, found.queue_rate) == (2.0, 1.0)
    assert turns == sorted(rates, reverse=queue_first)


@pytest.mark.slow
def test_a_pair_through_the_full_stack(stack):
    """Given the scripted model through `headrace up`, equal work is compared, and unequal work is refused."""
    tokens = sum(item.output_tokens for item in make_mix(0, MIX))
    console = Console(file=io.StringIO())

    def pair_with(tokens: int, *, queue_first: bool) -> Pair:
        bare = EngineOnlyRun(tokens, 1000.0, [0.001] * TTFT_REQUESTS, 0.0)
        return measure_pair(Subject("scripted", lambda: bare), "scripted", 0, console, queue_first=queue_first)

    found = pair_with(tokens, queue_first=False)

    assert found.queue_rate > 0
    assert found.added_ttft == pytest.approx(found.queue_ttft - 0.001)
    assert 20 < found.api_rss_mib < 150
    with pytest.raises(HeadraceError, match=f"work: {tokens + 1} tokens on the runtime alone, {tokens} through"):
        pair_with(tokens + 1, queue_first=True)


@pytest.mark.slow
def test_a_pair_of_two_servers(stack):
    """Given a server to compare with, it gets the same work, and the figures of each side are its own."""
    console = Console(file=io.StringIO())

    alone = Target(stack.url, "scripted", extra=EXTRA)
    found = measure_pair(Subject("scripted", alone), "scripted", 0, console, queue_first=False)

    assert found.bare_rate != found.queue_rate
    assert found.bare_ttft != found.queue_ttft
