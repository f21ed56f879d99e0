"""Counts and times of a worker, and its number of series."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from shared.backend import Backend
from shared.metrics.worker import BETWEEN_SECONDS
from shared.protocol import AdapterRef, PriorityClass
from shared.queue.interface import Claim, Delivery
from shared.settings import Settings
from shared.token_log.interface import Append, Lease
from tests.support.fakes import MODEL, answer, make_request, submit, token_event
from tests.support.loop_clock import turns
from tests.support.worker_harness import Harness
from workers.active_request import ActiveRequest, AppendTally
from workers.engine.stats import EngineStats, SpeculationStats, TierStats
from workers.engine_thread import EngineThread
from workers.lora.residents import Residents
from workers.metrics import WorkerMetrics
from workers.scripted_engine import ScriptedEngine


@pytest.fixture
def harness(backend: Backend, settings: Settings) -> Harness:
    made = Harness(backend, settings)
    made.metrics = WorkerMetrics("both")
    return made


def _series(registry: CollectorRegistry) -> int:
    return sum(len(family.samples) for family in registry.collect())


async def test_a_request_is_timed_and_counted_under_both_names(harness: Harness, backend: Backend) -> None:
    request = make_request(max_tokens=8, priority=PriorityClass.BATCH)
    async with harness.worker():
        await submit(backend, request)
        await answer(backend, request.id)
        sample = harness.metrics.registry.get_sample_value
        ours, theirs = {"model": MODEL, "class": "batch"}, {"model_name": MODEL, "engine": "0"}
        for name, vllm, times in (
            ("queue", "request_queue_time", 1),
            ("time_to_first_token", "time_to_first_token", 1),
            ("prefill", "request_prefill_time", 1),
            ("decode", "request_decode_time", 1),
            ("inference", "request_inference_time", 1),
            ("request", "e2e_request_latency", 1),
            ("time_per_token", "request_time_per_output_token", 1),
        ):
            assert sample(f"headrace_worker_{name}_seconds_count", ours) == times, name
            assert sample(f"vllm:{vllm}_seconds_count", theirs) == times, vllm
        assert sample("vllm:generation_tokens_total", theirs) == 8
        assert sample("vllm:request_success_total", {**theirs, "finished_reason": "length"}) == 1
        assert sample("vllm:num_requests_running", theirs) == 0
        assert sample("vllm:num_requests_waiting", theirs) == 0
        assert sample("vllm:kv_cache_usage_perc", theirs) == 0
        assert (sample("headrace_worker_step_seconds_count", {"model": MODEL}) or 0) > 0
        assert (sample("headrace_worker_batch_size_count", {"model": MODEL}) or 0) > 0


def test_each_gap_between_tokens_is_counted() -> None:
    """Given requests of two classes, some with equal gaps, and one with two tokens."""
    metrics, written = WorkerMetrics(), []
    standard, batch = PriorityClass.STANDARD, PriorityClass.BATCH
    for priority, last, text in (
        (standard, 10.0, "x"),
        (standard, 10.0, "y"),
        (batch, 10.0, "x"),
        (standard, 9.0, "xy"),
    ):
        request = make_request(max_tokens=9, priority=priority)
        delivery = Delivery(request, Claim(request.id, MODEL, priority, "1-0"), 1)
        active = ActiveRequest(delivery, Lease(request.id, "a", 1, 0.0))
        metrics.count_start(active)
        active.last_token_at = last
        written.append((active, Append(active.lease, token_event(5, *text), 5)))
    metrics.count_appends(AppendTally.take(written, 12.0), 12.0)
    for priority, count, seconds in ((standard, 3, 2 + 2 + 1.5), (batch, 1, 2)):
        labels, name = {"model": MODEL, "class": priority.value}, BETWEEN_SECONDS.name
        assert metrics.registry.get_sample_value(f"{name}_count", labels) == count
        assert metrics.registry.get_sample_value(f"{name}_sum", labels) == seconds


async def test_many_users_add_no_series(harness: Harness, backend: Backend) -> None:
    async with harness.worker():
        for tenant in ("first", *(f"u{number}" for number in range(20))):
            request = make_request(max_tokens=2, tenant=tenant)
            await submit(backend, request)
            await answer(backend, request.id)
            if tenant == "first":
                before = _series(harness.metrics.registry)
    assert _series(harness.metrics.registry) == before


class Tiered(ScriptedEngine):
    """Engine with a KV tier, from which it has loaded half of what it looked up."""

    def stats(self) -> EngineStats:
        return replace(super().stats(), tier=TierStats(queries=640, hits=320, damaged=1, pending=3))


def test_a_kv_tier_is_counted_under_both_names() -> None:
    metrics = WorkerMetrics("both")
    metrics.watch("m", EngineThread(Tiered(), lambda: None))
    metrics.watch("plain", EngineThread(ScriptedEngine(), lambda: None))
    sample, theirs = metrics.registry.get_sample_value, {"model_name": "m", "engine": "0"}
    for kind, count in (("queries", 640), ("hits", 320)):
        assert sample(f"headrace_worker_kv_tier_{kind}_total", {"model": "m"}) == count
        assert sample(f"vllm:external_prefix_cache_{kind}_total", theirs) == count
    assert sample("headrace_worker_kv_tier_damaged_total", {"model": "m"}) == 1
    assert sample("headrace_worker_kv_tier_pending", {"model": "m"}) == 3
    assert sample("headrace_worker_kv_tier_hits_total", {"model": "plain"}) is None


class Speculating(ScriptedEngine):
    """Engine that has drafted nine tokens in two steps; four of them were right."""

    def stats(self) -> EngineStats:
        return replace(super().stats(), speculation=SpeculationStats(2, 9, (2, 1, 1)))


def test_drafts_are_counted_under_both_names() -> None:
    metrics = WorkerMetrics("both")
    metrics.watch("m", EngineThread(Speculating(), lambda: None))
    sample, theirs = metrics.registry.get_sample_value, {"model_name": "m", "engine": "0"}
    for ours, vllm, count in (
        ("drafts", "num_drafts", 2),
        ("draft_tokens", "num_draft_tokens", 9),
    ):
        assert sample(f"headrace_worker_{ours}_total", {"model": "m"}) == count
        assert sample(f"vllm:spec_decode_{vllm}_total", theirs) == count
    assert sample("headrace_worker_accepted_draft_tokens_total", {"model": "m", "position": "0"}) == 2
    assert sample("vllm:spec_decode_num_accepted_tokens_total", theirs) == 4
    assert sample("vllm:spec_decode_num_accepted_tokens_per_pos_total", {**theirs, "position": "2"}) == 1


async def test_adapters_are_shown_under_both_names() -> None:
    """Each look shows the present adapters only, in one series."""

    async def load(ref: AdapterRef) -> Any:
        return ref.name

    metrics, residents = WorkerMetrics("both"), Residents(load, 2)
    metrics.watch_adapters("m", residents)
    for run in ("1", "2"):
        await residents.acquire(run, AdapterRef(f"a{run}", "p", run), 0)
    waiting = asyncio.create_task(residents.acquire("3", AdapterRef("b", "p", "3"), 0))
    await turns()
    sample = metrics.registry.get_sample_value
    assert sample("headrace_worker_adapters_loaded", {"model": "m"}) == 2
    assert sample("headrace_worker_adapter_loads_total", {"model": "m", "outcome": "loaded"}) == 2
    theirs = {"model_name": "m", "engine": "0", "max_lora": "2"}
    assert sample(
        "vllm:lora_requests_info", {**theirs, "waiting_lora_adapters": "b", "running_lora_adapters": "a1,a2"}
    )
    before = _series(metrics.registry)
    for run in ("1", "2"):
        residents.release(run)
    await waiting
    assert sample("vllm:lora_requests_info", {**theirs, "waiting_lora_adapters": "", "running_lora_adapters": "b"})
    assert _series(metrics.registry) == before + 1  # an eviction
