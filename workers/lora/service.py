"""The adapters of one worker: for the requests that it runs, and by the orders of the API."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import structlog

from shared.adapters.adapter import Adapter, AdapterOrder, AdapterResult, Refusal
from shared.backend import Backend
from shared.errors import ConfigError, InvalidRequest, ModelNotFound, ModelUnavailable, Unavailable
from shared.models.worker_registry import WorkerInfo
from shared.protocol import AdapterRef, PriorityClass
from shared.redis import keys
from shared.runtime.retry import run_forever, until_available
from shared.settings import Settings
from shared.token_log.interface import OVERDUE
from shared.token_log.listener import listen
from workers.active_request import ActiveRequest
from workers.engine.interface import EngineOutput, EngineRequest
from workers.engine.lora.adapter_folder import AdapterMissing
from workers.engine.lora.interface import AdapterReader
from workers.lora.residents import Residents
from workers.metrics import WorkerMetrics

if TYPE_CHECKING:  # the weights are tensors
    from workers.engine.lora.weights import AdapterWeights

CLAIM_TTL_S = 30.0  # after which another worker carries out an order that this one has not
MAX_READS = 2  # adapters that are checked at once: each takes memory and a thread
RETRY_PAUSE_S = 0.25
RANKS = {priority: rank for rank, priority in enumerate(PriorityClass)}  # 0 is the most urgent

log = structlog.get_logger(__name__)


class WorkerAdapters:
    """Adapters of one worker.

    Args:
        reader: reads adapters; None for an engine that computes none.
    """

    def __init__(
        self,
        reader: AdapterReader | None,
        backend: Backend,
        info: WorkerInfo,
        settings: Settings,
        metrics: WorkerMetrics,
    ) -> None:
        self._enabled = settings.lora_dir is not None
        self._reader = reader
        self._backend = backend
        self._metrics = metrics
        self._model = info.model
        self._worker = info.id
        self.residents = Residents(self._load, settings.max_loras)
        self._orders: dict[str, asyncio.Task[None]] = {}
        self._reads = asyncio.Semaphore(MAX_READS)

    async def attach(
        self, prepared: EngineRequest | EngineOutput, active: ActiveRequest
    ) -> EngineRequest | EngineOutput:
        """Return a prepared request with its adapter, if it has one and needs the engine; `release` lets it go.

        Raises:
            InvalidRequest: adapters are off.
            ModelNotFound: the adapter was unregistered before the answer began.
            ModelUnavailable: this worker cannot load it.
            DeadlineExceeded: the request's deadline passed while it waited for room.
        """
        ref = active.delivery.request.adapter
        if ref is None or isinstance(prepared, EngineOutput):
            return prepared
        if not self._enabled:
            raise InvalidRequest("this worker computes no adapters: its setting lora_dir is not set", param="model")
        if active.next_seq == 0:  # one that has begun finishes
            find = partial(self._backend.adapters.find, ref.name)
            found = await until_available(find, pause_s=RETRY_PAUSE_S, failure_event="adapters_unavailable")
            if found is None or found.base != self._model:
                raise ModelNotFound(f"the adapter {ref.name!r} was unloaded", param="model")
        rank = RANKS[active.delivery.request.priority]
        deadline = active.delivery.request.deadline
        try:
            async with asyncio.timeout(None if deadline is None else active.time_left(deadline)):
                weights = await self.residents.acquire(active.run_id, ref, rank)
        except TimeoutError:
            raise OVERDUE from None
        except ConfigError as error:
            log.warning("adapter_refused", adapter=ref.name, run_id=active.run_id, reason=error.message)
            raise ModelUnavailable(
                f"the adapter {ref.name!r} cannot be loaded as it was registered; the worker's log has the reason",
                param="model",
            ) from error
        return dataclasses.replace(prepared, adapter=weights)

    def release(self, run_id: str) -> None:
        """Let a run's adapter go."""
        self.residents.release(run_id)

    async def declare(self, modules: Mapping[str, str]) -> None:
        """Check and register the adapters of the settings, by name. Raises ConfigError, Unavailable."""
        if modules and not self._enabled:
            raise ConfigError(
                "lora_modules needs lora_dir, the folder that holds its adapters", param="lora_modules"
            )
        models = {info.name for info in await self._backend.registry.models()}
        for name, path in modules.items():
            if name in models:
                raise ConfigError(f"lora_modules: {name} is the name of a model", param="lora_modules")
            order = AdapterOrder(id="", action="load", name=name, base=self._model, path=path, replace=True)
            result = await self._register(order)
            if result.error:
                raise ConfigError(f"lora_modules: {name}: {result.error}", param="lora_modules")

    async def run(self) -> None:
        """Carry out orders until cancelled, if adapters are on."""
        if not self._enabled:
            return
        self._metrics.watch_adapters(self._model, self.residents)
        try:
            listen_for_orders = partial(listen, self._backend.live, keys.adapter_orders(self._model), self._take)
            await run_forever(listen_for_orders, pause_s=RETRY_PAUSE_S, failure_event="adapter_orders_unavailable")
        finally:
            for task in list(self._orders.values()):
                task.cancel()

    def _take(self, message: bytes) -> None:
        """Begin to carry out an order, which is published again and again until it has a result."""
        try:
            order = msgspec.json.decode(message, type=AdapterOrder)
        except (msgspec.DecodeError, UnicodeError):
            log.warning("adapter_order_unreadable", bytes=len(message))
            return
        if order.action == "unload":
            self.residents.drop(order.name)
        elif order.id not in self._orders:
            task = self._orders[order.id] = asyncio.create_task(self._carry_out(order))
            task.add_done_callback(lambda _: self._orders.pop(order.id, None))

    async def _carry_out(self, order: AdapterOrder) -> None:
        """Register an adapter, unless another worker does."""
        own = self._worker.encode()
        try:
            async with self._reads:  # before the claim, so that another worker may carry it out meanwhile
                if await self._backend.locks.acquire(f"adapter-order:{order.id}", own, CLAIM_TTL_S) != own:
                    return
                if await self._backend.adapters.result(order.id) is not None:
                    return
                await self._backend.adapters.answer(await self._register(order))
        except Unavailable as error:
            log.warning("adapter_orders_unavailable", error=error.message)

    async def _register(self, order: AdapterOrder) -> AdapterResult:
        """Load an adapter to check it, and register it. Raises Unavailable."""
        if self._reader is None:
            return AdapterResult(id=order.id, error=f"{order.base} computes no adapters", refusal="invalid")
        try:
            weights = await _in_short_thread(partial(self._reader.load, order.path))
        except ConfigError as error:
            log.warning("adapter_refused", adapter=order.name, reason=error.message)
            refusal: Refusal = "missing" if isinstance(error, AdapterMissing) else "invalid"
            return AdapterResult(id=order.id, error=error.message, refusal=refusal)
        except Exception:  # a fault of the reader: without an answer, the caller and all other workers would try on
            log.exception("adapter_failed", adapter=order.name)
            reason = "the worker failed to read the adapter; its log has the reason"
            return AdapterResult(id=order.id, error=reason, refusal="invalid")
        adapter = Adapter(
            name=order.name,
            base=order.base,
            path=order.path,
            digest=weights.digest,
            rank=weights.rank,
            created=int(time.time()),
            order=order.id,
        )
        refused = await self._backend.adapters.register(adapter, replace=order.replace)
        if refused and not await self._was_registered(order):
            reason = "it is registered already" if refused == "exists" else "too many are registered"
            return AdapterResult(id=order.id, error=reason, refusal=refused)
        log.info("adapter_registered", adapter=order.name, model=order.base, rank=weights.rank)
        self.residents.offer(adapter.ref, weights)
        return AdapterResult(id=order.id)

    async def _was_registered(self, order: AdapterOrder) -> bool:
        """Return whether a worker has registered the order's adapter, but could not answer. Raises Unavailable."""
        found = await self._backend.adapters.find(order.name)
        return found is not None and bool(order.id) and found.order == order.id

    async def _load(self, ref: AdapterRef) -> AdapterWeights:
        if self._reader is None:
            raise InvalidRequest(f"the workers of {self._model} compute no adapters", param="model")
        weights = await _in_short_thread(partial(self._reader.load, ref.path, ref.digest))
        log.info("adapter_loaded", adapter=ref.name, model=self._model, rank=weights.rank, bytes=weights.num_bytes)
        return weights


async def _in_short_thread(load: Callable[[], AdapterWeights]) -> AdapterWeights:
    """Call `load` in a thread that ends with it: OpenMP keeps threads for each thread that has computed.

    If there were more of them than cores, those of the engine would wait passively, which is a quarter slower.
    """
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapter")
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, load)
    finally:
        executor.shutdown(wait=False)
