"""Host of a model repository: one worker process that serves its models beside each other."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog

from shared.backend import Backend
from shared.errors import ConfigError, Unavailable
from shared.redis import keys
from shared.repository.backends import HEADRACE
from shared.repository.store import ModelOrder, OrderResult
from shared.settings import Settings
from workers.health.notifier import Notifier
from workers.health.step_watch import INTERVAL_S
from workers.metrics import WorkerMetrics
from workers.repository.hosted_model import HostedModel
from workers.repository.plan import Plan, Planner
from workers.repository.serving.context import HostContext
from workers.repository.serving.interface import Serving
from workers.repository.serving.memory_budget import MemoryBudget, budget_bytes
from workers.repository.serving.predictor_serving import PredictorServing
from workers.repository.serving.text_serving import TextServing

SLEEP_POLL_S = 1.0  # between looks at which models shall sleep
REPORTS_PER_LEASE = 3
REPORT_GAP_S = 0.05  # so that changes at one time are reported in one call
RETRY_S = 0.5
HUNG_GRACE_S = 1.0  # for the requests of other models, if the engine of one hangs
GONE = "it is no longer in the repository"

log = structlog.get_logger(__name__)


class RepositoryHost:
    """Serves the models of the setting `model_repository`.

    Args:
        notifier: tells the supervisor of this process that it responds.
    """

    def __init__(self, settings: Settings, backend: Backend, metrics: WorkerMetrics, notifier: Notifier) -> None:
        assert settings.model_repository is not None
        self._settings = settings
        self._root = settings.model_repository
        self._backend = backend
        self._notifier = notifier
        self._models: dict[str, HostedModel] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._asleep: frozenset[str] = frozenset()
        self._changed = asyncio.Event()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        budget = MemoryBudget(budget_bytes(settings.model_memory), self._idle_models, self._may_leave)
        self._context = HostContext(settings, backend, metrics, budget, self._changed.set, self._fail)
        self._id = self._context.new_worker("").id

    def worker_ids(self) -> list[str]:
        """Return the ids of the workers of its models, under which it may be ordered to leave."""
        return self._context.worker_ids()

    def drain(self, grace: float | None = None) -> None:
        """Finish the requests within `grace` seconds, and end; None means the grace time of the settings."""
        if grace is not None:
            self._context.hurry(grace)
        if not self._ended.done():
            self._ended.set_result(None)

    async def run(self) -> None:
        """Serve until `drain` is called.

        Raises ConfigError if the repository cannot be read; EngineHung, after which the process must end.
        """
        with tempfile.TemporaryDirectory(prefix="headrace-models-") as staging:
            planner = Planner(self._settings, self._root, Path(staging))
            await self._replan(planner)
            log.info("repository_ready", models=len(self._models), memory=self._context.budget.total)
            tasks = (self._watch_orders(planner), self._watch_sleep(), self._report())
            async with self._background(*tasks), self._responding():
                await self._ended

    @asynccontextmanager
    async def _background(self, *work: Awaitable[None]) -> AsyncIterator[None]:
        """Run tasks until the body ends, and then unload all models."""
        tasks = [asyncio.ensure_future(each) for each in work]
        for task in tasks:
            task.add_done_callback(self._on_end)
        try:
            yield
        finally:
            for task in (*tasks, *self._tasks.values()):
                task.cancel()
            await asyncio.wait([*tasks, *self._tasks.values()])
            with suppress(Unavailable):  # then they expire
                await self._backend.repository.report(self._id, [])

    @asynccontextmanager
    async def _responding(self) -> AsyncIterator[None]:
        """Tell the supervisor that the event loop runs, until the body ends."""

        async def tell() -> None:
            while True:
                self._notifier.alive()
                await asyncio.sleep(INTERVAL_S)

        self._notifier.ready()
        task = asyncio.create_task(tell())
        try:
            yield
        finally:
            task.cancel()
            self._notifier.stopping()

    def _on_end(self, task: asyncio.Future[None]) -> None:
        """End the process if one of its tasks fails."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._context.grace = HUNG_GRACE_S
        if not self._ended.done():
            self._ended.set_exception(error)

    # plans

    async def _watch_orders(self, planner: Planner) -> None:
        """Make new plans when an order arrives, and when the folder may have changed."""
        polls = self._settings.repository_poll if self._settings.model_control == "poll" else None
        while True:
            try:
                async with self._backend.live.subscribe(keys.REPOSITORY_WAKE) as woken:
                    while True:
                        await self._refuse_orders()
                        await self._replan_or_log(planner)
                        await woken.get(polls)
            except Unavailable as error:
                log.warning("orders_unavailable", error=error.message)
                await asyncio.sleep(RETRY_S)

    async def _replan_or_log(self, planner: Planner) -> None:
        if self._settings.model_control == "none":
            return
        try:
            await self._replan(planner)
        except ConfigError as error:  # what was found before goes on
            log.error("repository_unreadable", error=error.message)

    async def _replan(self, planner: Planner) -> None:
        """Follow the folder and the orders. Raises ConfigError, Unavailable."""
        orders = await self._orders()
        plans = await asyncio.to_thread(planner.make, orders)
        for plan in plans.values():
            self._follow(plan)
        for name in self._models.keys() - plans.keys():
            await self._forget(name)
        self._changed.set()

    def _follow(self, plan: Plan) -> None:
        asleep = plan.name in self._asleep
        if (model := self._models.get(plan.name)) is not None:
            model.update(plan, asleep=asleep)
            return
        if plan.reason:
            log.error("model_unusable", model=plan.name, reason=plan.reason)
        model = self._models[plan.name] = HostedModel(plan, self._context, self._make_serving, self._need)
        model.update(plan, asleep=asleep)
        task = self._tasks[plan.name] = asyncio.create_task(model.run(), name=f"model-{plan.name}")
        task.add_done_callback(self._on_end)

    async def _forget(self, name: str) -> None:
        """Unload a model that is gone, and forget it once that is done; its requests are refused until then."""
        model = self._models[name]
        if model.plan.reason == GONE and model.serving is None:
            del self._models[name]
            task = self._tasks.pop(name)
            task.cancel()
            await asyncio.wait([task])
        else:
            model.update(Plan(name, reason=GONE), asleep=False)

    async def _orders(self) -> list[ModelOrder]:
        if self._settings.model_control != "explicit":
            return []
        orders = await self._backend.repository.orders()
        for order in orders:
            if order.action == "unload" and order.unload_dependents:
                await self._unload_dependents(order)
        return await self._backend.repository.orders()

    async def _unload_dependents(self, order: ModelOrder) -> None:
        """Order the models of an ensemble to be unloaded, when its order is carried out for the first time."""
        model = self._models.get(order.model)
        if model is None or await self._backend.repository.result(order.id) is not None:
            return
        for name in sorted(model.plan.components):
            await self._backend.repository.place(ModelOrder(id=f"{order.id}-{name}", model=name, action="unload"))

    async def _refuse_orders(self) -> None:
        """Answer orders that the setting `model_control` does not allow."""
        control = self._settings.model_control
        if control == "explicit":
            return
        error = f"model_control must be explicit to load and unload models by order, it is {control}"
        for order in await self._backend.repository.orders():
            await self._backend.repository.answer(OrderResult(id=order.id, error=error))

    async def _watch_sleep(self) -> None:
        """Unload the models that were put to sleep, and load those that were woken."""
        while True:
            try:
                self._asleep = await self._backend.registry.asleep()
            except Unavailable as error:
                log.warning("sleep_unknown", error=error.message)
            for model in self._models.values():
                model.update(model.plan, asleep=model.plan.name in self._asleep)
            await asyncio.sleep(SLEEP_POLL_S)

    # models

    def _make_serving(self, plan: Plan, context: HostContext, on_failure: Callable[[str], None]) -> Serving:
        assert plan.spec is not None
        kind = TextServing if plan.spec.backend == HEADRACE else PredictorServing
        return kind(plan, context, on_failure)

    async def _need(self, name: str) -> None:
        """Make a component of an ensemble ready. Raises ConfigError."""
        model = self._models.get(name)
        if model is None or not (model.plan.wanted or model.plan.on_demand):
            raise ConfigError(f"its model {name} is not loaded")
        if model.serving is None:
            model.demand()
        await model.settled()
        if model.serving is None and model.failure is not None:
            raise ConfigError(f"its model {name} cannot be loaded: {model.failure.reason}")

    def _idle_models(self, other_than: str) -> list[HostedModel]:
        served = [(name, model) for name, model in self._models.items() if model.serving is not None]
        return [
            model
            for name, model in served
            if name != other_than and not model.holds_requests and self._may_leave(name)
        ]

    def _may_leave(self, name: str) -> bool:
        model = self._models.get(name)
        if model is None or not model.plan.on_demand:
            return False
        served = (other for other in self._models.values() if other.serving is not None)
        return not any(name in other.plan.components for other in served)

    # reports

    async def _report(self) -> None:
        """Report the statuses when they change, and three times per lease."""
        while True:
            self._changed.clear()
            try:
                statuses = [model.status() for model in self._models.values() if model.plan.known]
                await self._backend.repository.report(self._id, statuses)
            except Unavailable as error:
                log.warning("report_failed", error=error.message)
            await asyncio.sleep(REPORT_GAP_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.lease / REPORTS_PER_LEASE):
                    await self._changed.wait()
