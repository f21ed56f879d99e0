"""A model repository on disk, and what loads its models: each multiplies its input by a number in its file."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.backend import Backend
from shared.errors import ConfigError
from shared.models.worker_registry import WorkerInfo
from shared.protocol import Infer, Request, SequenceStep, TokenEvent, new_job_id
from shared.repository.spec import ModelSpec
from shared.repository.status import ModelStatus
from shared.settings import Settings
from tests.support.fakes import answer, submit
from tests.support.predictors import X, Y, floats
from tests.support.waiting import LIMIT_S
from workers.health.notifier import NO_SUPERVISOR
from workers.metrics import WorkerMetrics
from workers.predictors.interface import Arrays, Execution
from workers.predictors.tensors.arrays import to_array, to_tensor
from workers.repository.host import RepositoryHost

FILE = "model.onnx"  # by whose name the backend is known


def write_model(root: Path, name: str, version: int = 1, **behaviour: Any) -> Path:
    """Write a version of a model, and return its folder.

    Args:
        behaviour: `factor` (default: the version), `memory` in bytes, `error` with which it cannot be loaded.
    """
    folder = root / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps({"factor": version, "memory": 100, **behaviour}), encoding="utf-8")
    return folder


def write_config(root: Path, name: str, config: str) -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "config.pbtxt").write_text(config, encoding="utf-8")


class Multiplier:
    """Predictor whose output Y is its input X times a number. With a gate, each execution waits for it."""

    def __init__(self, factor: float, memory: int, gate: threading.Event | None) -> None:
        self.memory_bytes = memory
        self._factor = factor
        self._gate = gate

    def predict(self, call: Execution) -> Arrays:
        if self._gate is not None:
            assert self._gate.wait(LIMIT_S)
        return {"Y": call.inputs["X"] * np.float32(self._factor)}

    def stream(self, call: Execution) -> Iterator[Arrays]:
        raise NotImplementedError

    def close(self) -> None: ...


class Multipliers:
    """PredictorModule of such models.

    Attributes:
        loaded: model and version of each load, in order.
        load_gates: by model, for a load that waits.
        gates: by model, for executions that wait.
    """

    def __init__(self) -> None:
        self.loaded: list[tuple[str, str]] = []
        self.load_gates: dict[str, threading.Event] = {}
        self.gates: dict[str, threading.Event] = {}

    def complete(self, spec: ModelSpec, folder: Path) -> ModelSpec:
        fields = {"inputs": spec.inputs or (X,), "outputs": spec.outputs or (Y,)}
        return ModelSpec(**{**{name: getattr(spec, name) for name in spec.__struct_fields__}, **fields})

    def load(self, spec: ModelSpec, folder: Path, *, threads: int | None) -> Multiplier:
        self.loaded.append((spec.name, folder.name))
        if spec.name in self.load_gates:
            assert self.load_gates[spec.name].wait(LIMIT_S)
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if "error" in found:
            raise ConfigError(found["error"])
        return Multiplier(found["factor"], found["memory"], self.gates.get(spec.name))


@dataclass
class HostHarness:
    """Runs hosts of one repository for the duration of a block of a test."""

    root: Path
    settings: Settings
    backend: Backend
    module: Multipliers

    @asynccontextmanager
    async def host(self, **changes: Any) -> AsyncIterator[RepositoryHost]:
        settings = self.settings.model_copy(update=changes)
        host = RepositoryHost(settings, self.backend, WorkerMetrics(), NO_SUPERVISOR)
        task = asyncio.create_task(host.run())
        try:
            yield host
        finally:
            host.drain()
            await task

    async def status(self, name: str) -> ModelStatus | None:
        statuses = await self.backend.repository.statuses()
        return next((status for status in statuses if status.name == name), None)

    async def until(self, name: str, **states: str) -> ModelStatus:
        """Wait until the versions of a model, as `v1="READY"`, are exactly in these states."""
        wanted = {version.removeprefix("v"): state for version, state in states.items()}
        async with asyncio.timeout(LIMIT_S):
            while True:
                status = await self.status(name)
                if status is not None and {each.version: each.state for each in status.versions} == wanted:
                    return status
                await asyncio.sleep(0.01)

    async def until_worker(self, name: str) -> WorkerInfo:
        """Wait for a worker of a model that is ready."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                for worker in await self.backend.registry.workers():
                    if worker.model == name and worker.state == "ready":
                        return worker
                await asyncio.sleep(0.01)

    async def send(self, name: str, value: float = 1.0, **fields: Any) -> Request:
        request = infer_request(name, value, **fields)
        await submit(self.backend, request)
        return request

    async def ask(self, name: str, value: float = 1.0, **fields: Any) -> float:
        """Return the output for a request. Raises the error that ends it."""
        request = await self.send(name, value, **fields)
        async with asyncio.timeout(LIMIT_S):
            return output_of(await answer(self.backend, request.id))


def infer_request(
    name: str, value: float = 1.0, version: str = "", sequence: SequenceStep | None = None, tenant: str = "default"
) -> Request:
    work = Infer(inputs=(to_tensor("X", "FP32", floats([value])[0]),), version=version, sequence=sequence)
    return Request(id=new_job_id(), model=name, work=work, tenant=tenant)


def output_of(events: list[TokenEvent]) -> float:
    """Return the output in an answer. Raises the error that ended it."""
    terminal = events[-1].terminal
    assert terminal is not None
    if terminal.error is not None:
        raise terminal.error.to_error()
    assert terminal.result is not None
    return float(to_array(terminal.result.tensors[0])[0])
