"""Worker that answers requests for inference by functions on numpy arrays, without an engine."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from producer_api.kserve.tensor_data import CODES, items_of, pack_items
from shared.backend import Backend
from shared.errors import HeadraceError
from shared.models.worker_registry import WorkerInfo
from shared.protocol import (
    ErrorInfo,
    Infer,
    RequestState,
    Result,
    Tensor,
    Terminal,
    Token,
    TokenEvent,
    Usage,
    encode,
)
from shared.queue.interface import Delivery, Room
from shared.redis import keys
from shared.repository.spec import ModelSpec, SequenceBatching, TensorSpec
from shared.repository.status import Duration, ModelStatus, VersionStatistics, VersionStatus
from shared.repository.store import ModelOrder, OrderResult
from shared.token_log.interface import Append, Lease
from tests.support.waiting import LIMIT_S

STATISTICS = VersionStatistics(
    last_inference=1_700_000_000_000,
    inference_count=3,
    execution_count=2,
    success=Duration(3, 3_000),
    compute_infer=Duration(2, 2_000),
    memory_bytes=1024,
)
Predict = Callable[[Infer], Iterable[Sequence[Tensor]]]  # each item is a response


@dataclass(frozen=True)
class TensorModel:
    """A model: its description, and a function that returns its responses."""

    spec: ModelSpec
    predict: Predict | None  # None for a model that is ready and not served
    versions: tuple[str, ...] = ("1",)
    requests: list[Infer] = field(default_factory=list)  # that it got
    gate: asyncio.Event | None = None  # that its answers wait for


def values(tensor: Tensor) -> tuple[float, ...]:
    return struct.unpack(f"<{tensor.size}{CODES[tensor.datatype]}", tensor.data)


def tensor(name: str, datatype: str, shape: Sequence[int], items: Sequence[object]) -> Tensor:
    """Return a tensor of Python values."""
    if datatype == "BYTES":
        return Tensor(name, "BYTES", tuple(shape), pack_items(items))
    return Tensor(name, datatype, tuple(shape), struct.pack(f"<{len(items)}{CODES[datatype]}", *items))


def spec(name: str, inputs: Mapping[str, str], outputs: Mapping[str, str], dims=(-1,), **more: object) -> ModelSpec:
    """Return a description; `inputs` and `outputs` are datatypes by name."""

    def specs(given: Mapping[str, str]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=each, datatype=datatype, dims=dims) for each, datatype in given.items())

    return ModelSpec(name=name, backend="python", inputs=specs(inputs), outputs=specs(outputs), **more)


def _add_sub(work: Infer) -> Iterable[Sequence[Tensor]]:
    a, b = work.inputs
    pairs = list(zip(values(a), values(b), strict=True))
    yield (
        tensor("OUTPUT0", "INT32", a.shape, [x + y for x, y in pairs]),
        tensor("OUTPUT1", "INT32", a.shape, [x - y for x, y in pairs]),
    )


def _identity(work: Infer) -> Iterable[Sequence[Tensor]]:
    yield [Tensor(each.name.replace("IN", "OUT"), each.datatype, each.shape, each.data) for each in work.inputs]


def _repeat(work: Infer) -> Iterable[Sequence[Tensor]]:
    for value in values(work.inputs[0]):
        yield [tensor("OUT", "INT32", [1], [value])]


def _failing(work: Infer) -> Iterable[Sequence[Tensor]]:
    raise HeadraceError("the model ran out of numbers")


def _classes(work: Infer) -> Iterable[Sequence[Tensor]]:
    yield [tensor("OUT", "FP32", work.inputs[0].shape, values(work.inputs[0]))]


def _greet(work: Infer) -> Iterable[Sequence[Tensor]]:
    for item in items_of(work.inputs[0].data):
        yield [tensor("text_output", "BYTES", [1], [b"hello " + item])]


class Accumulator:
    """Sums the inputs of each sequence."""

    def __init__(self) -> None:
        self._sums: dict[int | str, float] = {}

    def __call__(self, work: Infer) -> Iterable[Sequence[Tensor]]:
        step = work.sequence
        assert step is not None
        [value] = values(work.inputs[0])
        self._sums[step.id] = (0 if step.start else self._sums[step.id]) + value
        yield [tensor("OUT", "INT32", [1], [self._sums[step.id]])]


def models() -> dict[str, TensorModel]:
    """Return fresh models by name."""
    kinds = {datatype: datatype for datatype in (*CODES, "FP16", "BF16", "BYTES")}
    add_sub = spec("add_sub", {"INPUT0": "INT32", "INPUT1": "INT32"}, {"OUTPUT0": "INT32", "OUTPUT1": "INT32"})
    labelled = spec("classes", {"IN": "FP32"}, {"OUT": "FP32"}, max_batch_size=8)
    [output] = labelled.outputs
    labels = TensorSpec(name="OUT", datatype="FP32", dims=output.dims, labels=("cat", "dog"))
    found = [
        TensorModel(add_sub, _add_sub, ("1", "3")),
        *(TensorModel(spec(f"identity_{kind.lower()}", {"IN": kind}, {"OUT": kind}), _identity) for kind in kinds),
        TensorModel(spec("batched", {"IN": "FP32"}, {"OUT": "FP32"}, dims=(2,), max_batch_size=4), _identity),
        TensorModel(spec("repeat", {"IN": "INT32"}, {"OUT": "INT32"}, decoupled=True), _repeat),
        TensorModel(spec("gated", {"IN": "INT32"}, {"OUT": "INT32"}), _identity, gate=asyncio.Event()),
        TensorModel(spec("waiting", {"IN": "INT32"}, {"OUT": "INT32"}), None),
        TensorModel(spec("failing", {"IN": "INT32"}, {"OUT": "INT32"}), _failing),
        TensorModel(
            ModelSpec(**{**_fields(labelled), "outputs": (labels,)}),
            _classes,
        ),
        TensorModel(
            spec("sums", {"IN": "INT32"}, {"OUT": "INT32"}, dims=(1,), sequence_batching=SequenceBatching()),
            Accumulator(),
        ),
        TensorModel(
            spec("greeter", {"text_input": "BYTES"}, {"text_output": "BYTES"}, dims=(1,), decoupled=True), _greet
        ),
    ]
    return {each.spec.name: each for each in found}


def _fields(given: ModelSpec) -> dict[str, object]:
    return {name: getattr(given, name) for name in ModelSpec.__struct_fields__}


class TensorWorker:
    """Worker that serves models until it is closed."""

    def __init__(self, backend: Backend, served: Mapping[str, TensorModel]) -> None:
        self.backend = backend
        self.models = served

    async def announce(self, *more: ModelStatus) -> None:
        """Report the models, ready in all versions, and `more` in place of those of the same name."""
        statuses = {name: self._status(model) for name, model in self.models.items()}
        statuses |= {each.name: each for each in more}
        await self.backend.repository.report("w1", list(statuses.values()))
        for name in self.models:
            worker = WorkerInfo(id=f"w1-{name}", pid=1, model=name, state="ready", task="predict")
            await self.backend.registry.beat(worker)

    async def serve(self, name: str) -> None:
        """Answer the requests of a model, in their order."""
        async with self.backend.live.subscribe(keys.wake_channel(name)) as wake:
            while True:
                pulled = await self.backend.transport.pull(name, "w1", Room.all(8))
                for delivery in pulled.found:
                    assert isinstance(delivery, Delivery)
                    await self._answer(self.models[name], delivery)
                if not pulled.found:
                    await wake.get(1.0)

    def _status(self, model: TensorModel) -> ModelStatus:
        versions = [VersionStatus(version=each, state="READY", statistics=STATISTICS) for each in model.versions]
        return ModelStatus(name=model.spec.name, spec=model.spec, versions=tuple(versions))

    async def _answer(self, model: TensorModel, delivery: Delivery) -> None:
        [lease] = await self.backend.token_log.acquire([delivery.request.id], "w1")
        if lease is None:
            return
        work = delivery.request.work
        assert isinstance(work, Infer) and model.predict is not None
        model.requests.append(work)
        if model.gate is not None:
            await model.gate.wait()
        version = work.version or model.versions[-1]
        state, error, result, seq = RequestState.COMPLETED, None, None, 0
        try:
            for tensors in model.predict(work):
                wanted = tuple(each for each in tensors if not work.outputs or each.name in work.outputs)
                result = Result(tensors=wanted, version=version)
                if model.spec.decoupled:
                    token = Token(0, seq, encode(result).decode())
                    await self._append(lease, TokenEvent(seq, (token,)))
                    seq += 1
        except HeadraceError as failure:
            state, error = RequestState.FAILED, ErrorInfo.from_error(failure)
        end = Terminal(state, Usage(1, seq), error, result=None if model.spec.decoupled or error else result)
        await self._append(lease, TokenEvent(seq, (), end))
        await self.backend.transport.acknowledge([delivery.claim])

    async def _append(self, lease: Lease, event: TokenEvent) -> None:
        await self.backend.token_log.append([Append(lease, event, 1)])


@asynccontextmanager
async def working(backend: Backend) -> AsyncIterator[TensorWorker]:
    """Run a worker that serves `models` until the body ends."""
    worker = TensorWorker(backend, models())
    await worker.announce()
    tasks = [asyncio.create_task(worker.serve(name)) for name, model in worker.models.items() if model.predict]
    try:
        yield worker
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def obeying(worker: TensorWorker, error: str = "") -> AsyncIterator[list[ModelOrder]]:
    """Carry out orders until the body ends, and yield those that were carried out."""
    seen: list[ModelOrder] = []
    backend = worker.backend

    async def obey() -> None:
        while True:
            for order in await backend.repository.orders():
                if await backend.repository.result(order.id) is None:
                    seen.append(order)
                    await backend.repository.answer(OrderResult(id=order.id, error=error))
                    gone = ModelStatus(name=order.model, spec=worker.models[order.model].spec)
                    await worker.announce(*([gone] if order.action == "unload" else []))
            await asyncio.sleep(0.01)

    task = asyncio.create_task(obey())
    try:
        async with asyncio.timeout(LIMIT_S):
            yield seen
    finally:
        task.cancel()
