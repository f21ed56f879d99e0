"""Requests that a worker runs before it is ready."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.backend import Backend
from shared.errors import ConfigError, EngineFailed
from shared.models.model_store import ModelRepository
from shared.models.startup_progress import StartupProgress
from shared.models.worker_registry import Task, WorkerInfo
from shared.settings import Settings
from tests.support.fakes import MODEL
from tests.support.worker_harness import RecordingEngine
from workers.engine.interface import EngineOutput
from workers.metrics import WorkerMetrics
from workers.runtimes import native
from workers.startup.loading import load_engine
from workers.startup.warmup import TENANT, read_warm_ups

CHAT = '{"model": "scripted", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}'
TEXT = '{"prompt": ["a", "b"], "max_tokens": 2}'
OTHER = '{"model": "other", "prompt": "x"}'


class FailingEngine(RecordingEngine):
    """Engine that computes no request."""

    def step(self) -> list[EngineOutput]:
        outputs = super().step()
        return [EngineOutput(each.job_id, finished=True, error=EngineFailed("out of memory")) for each in outputs]


class BrokenEngine(RecordingEngine):
    """Engine with a bug."""

    def step(self) -> list[EngineOutput]:
        raise ZeroDivisionError


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> RecordingEngine:
    made = RecordingEngine()
    monkeypatch.setattr(native, "load", lambda *_: made)
    return made


async def load(backend: Backend, settings: Settings) -> StartupProgress:
    info, progress = WorkerInfo(id="w", pid=1, model=MODEL, state="loading"), StartupProgress()
    _, ready = await load_engine(settings, ModelRepository(settings), backend, info, progress)
    assert ready.state == "ready"
    return progress


def declare(settings: Settings, tmp_path: Path, *lines: str) -> Settings:
    path = tmp_path / "warmup.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return settings.model_copy(update={"warmup_requests": path})


async def test_declared_requests_run_before_the_worker_is_ready(
    backend: Backend, settings: Settings, tmp_path: Path, engine: RecordingEngine
) -> None:
    progress = await load(backend, declare(settings, tmp_path, CHAT, "", TEXT, OTHER))
    assert [request.params.max_tokens for request in engine.requests] == [3, 2, 2]  # not the other model's
    assert {request.tenant for request in engine.requests} == {TENANT}
    assert not engine.has_work()
    assert progress.seconds["warmup"] > 0
    assert [worker.state for worker in await backend.registry.workers()] == ["loading"]
    assert await backend.redis.keys("hr:{req_*") == []


@pytest.mark.parametrize("task", ["embed", "classify"])
async def test_an_input_warms_up_every_encoder(
    backend: Backend, settings: Settings, tmp_path: Path, engine: RecordingEngine, task: Task
) -> None:
    engine.task = task
    await load(backend, declare(settings, tmp_path, '{"input": ["a", "bc"]}'))
    assert [request.lengths for request in engine.requests] == [(1, 2)]


async def test_one_short_request_runs_by_default(
    backend: Backend, settings: Settings, engine: RecordingEngine
) -> None:
    await load(backend, settings)
    assert [(request.params.max_tokens, request.params.logprobs) for request in engine.requests] == [(2, 1)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "must be a JSON object"),
        ("[]", "must be a JSON object"),
        ('{"model": "scripted"}', "messages, prompt or input"),
        ('{"prompt": "a", "top_p": 2}', "top_p"),
        ('{"messages": "a"}', "messages"),
        ('{"prompt": "a", "n": 2, "best_of": 1}', "best_of"),
        ('{"prompt": "a", "logit_bias": {"99999999999": 1}}', "logit_bias"),
    ],
)
async def test_a_wrong_line_is_refused_with_its_number(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "warmup.jsonl"
    path.write_text(f"{CHAT}\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"warmup_requests, line 2: .*{reason}"):
        read_warm_ups(path, MODEL)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
async def test_what_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "warmup.jsonl"
    make(path)
    with pytest.raises(ConfigError, match="must be a regular file"):
        read_warm_ups(path, MODEL)


async def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "warmup.jsonl"
    path.write_text(f"{CHAT}\n", encoding="utf-8-sig")
    assert len(read_warm_ups(path, MODEL)) == 1


async def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_warm_ups(tmp_path / "none.jsonl", MODEL)


@pytest.mark.parametrize(
    ("engine_type", "lines", "kind", "place"),
    [
        (FailingEngine, [], EngineFailed, "the built-in request failed: out of memory"),
        (FailingEngine, [CHAT], EngineFailed, "line 1 failed: out of memory"),
        (BrokenEngine, [CHAT], EngineFailed, "line 1 failed: this request made the computation fail"),
        (
            RecordingEngine,
            [TEXT, CHAT.replace("Hi", "H" * 100_000)],
            ConfigError,
            "line 2 failed: this model's maximum context",
        ),
    ],
)
async def test_a_worker_whose_warm_up_fails_is_not_ready(
    backend: Backend,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine_type: type[RecordingEngine],
    lines: list[str],
    kind: type[Exception],
    place: str,
) -> None:
    monkeypatch.setattr(native, "load", lambda *_: engine_type())
    with pytest.raises(kind, match=place):
        await load(backend, declare(settings, tmp_path, *lines) if lines else settings)


def test_the_metrics_show_each_phase_of_the_start() -> None:
    times = iter([0.0, 1.0, 3.0, 3.5, 4.0, 7.0])
    progress = StartupProgress(clock=lambda: next(times))
    with progress.phase("download"):
        pass
    with progress.phase("download"):
        pass
    metrics = WorkerMetrics()
    metrics.show_startup(progress)
    shown = {
        phase: metrics.registry.get_sample_value("headrace_worker_startup_seconds", {"phase": phase})
        for phase in ("download", "weights", "total")
    }
    assert shown == {"download": 2.5, "weights": 0.0, "total": 7.0}
