"""`headrace doctor`: the models that are being served, and the workers of each."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.cli.main import app
from headrace.doctor.finding import Finding
from headrace.doctor.model_checks import check_models
from shared.backend import Backend
from shared.models.worker_registry import ModelInfo, WorkerInfo
from shared.redis.embedded import EmbeddedServer
from tests.support.typer_internals import CliRunner


def worker(name: str = "a", **fields: Any) -> WorkerInfo:
    given = {"pid": 1, "model": "m", "state": "ready", "fingerprint": "fp_1", "max_model_len": 512, **fields}
    return WorkerInfo(id=name, **{"max_num_seqs": 8, **given})


def check(*workers: WorkerInfo, mixed: bool = False) -> Finding:
    [finding] = check_models([ModelInfo(name="m", max_model_len=0, created=0)], workers, mixed=mixed)
    return finding


def test_a_model_shows_its_runtime_and_limits() -> None:
    assert check(worker("a"), worker("b")) == Finding(
        "model m",
        "ok",
        "workers: 2 ready; native, context 512 tokens, 8 sequences at a time in each worker, fingerprint fp_1",
    )


@pytest.mark.parametrize("other", [{"fingerprint": "fp_2"}, {"runtime": "vllm"}])
def test_workers_that_disagree_are_reported(other: dict[str, str]) -> None:
    found = check(worker("a"), worker("b", **other))
    assert (found.status, "the workers disagree" in found.found, "mixed_workers" in found.remedy) == (
        "warning",
        True,
        True,
    )
    assert next(iter(other.values())) in found.found
    for allowed in (
        check(worker("a"), worker("b", **other), mixed=True),
        check(worker("a"), worker("b", state="draining", **other)),
    ):
        assert allowed.status == "ok"


@pytest.mark.parametrize("workers", [[], [worker(state="loading", fingerprint="")], [worker(state="draining")]])
def test_a_model_without_a_ready_worker_is_reported(workers: list[WorkerInfo]) -> None:
    assert check(*workers).status == "warning"


def test_a_model_that_loads_for_the_first_time_is_listed() -> None:
    [finding] = check_models([], [worker(state="loading", fingerprint="")], mixed=False)
    assert (finding.what, finding.found) == ("model m", "workers: 1 loading")


async def test_the_command_shows_the_models(backend: Backend, valkey: EmbeddedServer) -> None:
    await backend.registry.beat(worker(model="shown"))
    command = ["doctor", "--json", "--redis-url", valkey.url]
    shown = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert "model shown" in shown.stdout
