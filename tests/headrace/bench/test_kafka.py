"""Kafka benchmarks on a small scale: each request has one result, and the figures are complete."""

from __future__ import annotations

import subprocess
from typing import cast

import pytest
from kafka import KafkaConsumer, KafkaProducer
from rich.console import Console

from headrace.bench.harness.workload import WorkItem
from headrace.bench.kafka import kafka_throughput
from headrace.bench.kafka.kafka_cluster import Installation
from headrace.bench.kafka.kafka_interference import measure_interference
from headrace.bench.kafka.kafka_throughput import Churn, Run, measure_kafka


@pytest.fixture(autouse=True)
def own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the mock's adaptation to a benchmark's own server after the test."""
    for owner, name in (
        (KafkaConsumer, "committed"),
        (KafkaProducer, "send_offsets_to_transaction"),
        (KafkaProducer, "commit_transaction"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))


@pytest.mark.slow
def test_every_request_has_one_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_throughput, "WARMUP_REQUESTS", 20)
    monkeypatch.setattr(kafka_throughput, "CHURN_FACTOR", 1)
    flows = measure_kafka(300, "", 1, Console(quiet=True), churn=False)
    found = flows.as_dict()
    assert (found["lost"], found["repeated"]) == (0, 0)
    [run] = flows.runs
    assert run.rate == pytest.approx(300 / run.seconds)
    assert run.rss_mib[0] > 10
    assert min(run.worker_us, run.redis_us) > 0


@pytest.mark.slow
def test_interactive_requests_are_answered_during_batch_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.bench.gateway.priorities.INTERACTIVE_REQUESTS", 24)
    monkeypatch.setattr("headrace.bench.gateway.priorities.ARRIVALS_PER_S", 4.0)
    monkeypatch.setattr("headrace.bench.gateway.priorities.SETTLE_S", 0.0)
    # as long as the interactive requests take, whatever the machine: 32 of them run at a time, for 0.4 s
    monkeypatch.setattr("headrace.bench.kafka.kafka_interference.BACKLOG_REQUESTS", 1000)
    paced = [WorkItem("[pace 100]", 10, 4)] * 1000
    monkeypatch.setattr("headrace.bench.kafka.kafka_interference.make_mix", lambda seed, count: paced[:count])
    [pair] = measure_interference("scripted", "", 1, 0, {}, Console(quiet=True)).pairs
    assert min(pair.alone_p95, pair.loaded_p95) > 0
    assert pair.batch_rate > 0


class Place:
    """Installation whose workers are processes that do nothing."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def start_worker(self, **settings: object) -> subprocess.Popen[bytes]:
        self.started.append(subprocess.Popen(["sleep", "60"]))
        return self.started[-1]

    def left(self) -> list[bool]:
        return [worker.poll() is not None for worker in self.started]


def test_churn_starts_and_stops_a_second_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_throughput, "CHURN_INTERVAL_S", 0.05)
    place = Place()
    churn = Churn(cast("Installation", place))
    churn.step_if_due()
    assert (churn.steps, place.left()) == (0, [])
    for steps, left in ((1, [False]), (2, [True]), (3, [True, False])):
        while churn.steps < steps:
            churn.step_if_due()
        assert place.left() == left
    churn.stop()
    churn.stop()
    assert place.left() == [True, True]


def test_growth_excludes_the_first_quarter() -> None:
    assert Run(1, rss_mib=[50.0, 70.0, 71.0, 74.0]).growth == 4.0
    assert Run(1, rss_mib=[70.0]).growth == 0.0
