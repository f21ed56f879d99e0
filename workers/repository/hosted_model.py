"""One model of the repository in a worker process: it is loaded, updated and unloaded as its plan says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import msgspec
import structlog

from shared.errors import ConfigError, HeadraceError, ModelNotFound, ModelUnavailable, Unavailable
from shared.models.worker_registry import Task
from shared.repository.backends import HEADRACE
from shared.repository.joining import join
from shared.repository.spec import ModelSpec
from shared.repository.status import UNLOADED, ModelStatus, VersionStatus
from shared.repository.store import OrderResult
from workers.repository.plan import Plan
from workers.repository.queue_watch import wait_for_requests
from workers.repository.refusal import refuse_waiting
from workers.repository.serving.context import HostContext
from workers.repository.serving.interface import Serving
from workers.repository.serving.memory_budget import MemoryExceeded

FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 300.0  # between two attempts to load a model; each pause is twice the last one
MAX_DOUBLINGS = 20
RETRY_S = 0.5  # after Redis could not be reached

log = structlog.get_logger(__name__)
MakeServing = Callable[[Plan, HostContext, Callable[[str], None]], Serving]


@dataclass(frozen=True)
class Failure:
    """Why a model is not served, and when it is tried again, by the loop's clock.

    Attributes:
        count: attempts that failed in a row.
        refuses: its waiting requests are refused, because it could not be loaded.
    """

    reason: str
    retry_at: float
    count: int = 1
    refuses: bool = True


class HostedModel:
    """One model. Its task, `run`, is the only one that loads and unloads it.

    Args:
        make_serving: returns what serves a plan.
        need: makes a component of an ensemble ready. Raises ConfigError if it cannot be loaded.
    """

    def __init__(
        self, plan: Plan, context: HostContext, make_serving: MakeServing, need: Callable[[str], Awaitable[None]]
    ) -> None:
        self.plan = plan
        self.serving: Serving | None = None
        self.failure: Failure | None = None
        self._context = context
        self._make_serving = make_serving
        self._need = need
        self._asleep = False
        self._demanded = False
        self._left = False  # for other models, until requests wait for it
        self._broken = False  # the engine of `serving` has failed
        self._next: Serving | None = None  # while it is loaded, to replace `serving`
        self._work = asyncio.Event()
        self._settled = asyncio.Condition()
        self._watch: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._answered = ""  # id of the order that was answered last

    @property
    def holds_requests(self) -> bool:
        return self.serving is not None and self.serving.holds_requests

    @property
    def used_at(self) -> float:
        return self.serving.used_at if self.serving is not None else 0.0

    # what it shall be

    def update(self, plan: Plan, *, asleep: bool) -> None:
        """Follow a plan. A changed one is tried at once, also after a failure."""
        if plan == self.plan and asleep == self._asleep:
            return
        if plan != self.plan:
            self.failure, self._left = None, False
        self.plan, self._asleep = plan, asleep
        self._work.set()

    def demand(self) -> None:
        """Load the model if that is allowed, as it is needed now."""
        self._demanded, self._left = True, False
        self._work.set()

    async def leave(self) -> None:
        """Unload the model until it is needed again."""
        self._demanded, self._left = False, True
        self._work.set()
        async with self._settled:
            await self._settled.wait_for(lambda: self.serving is None or not self._left)

    async def settled(self) -> None:
        """Wait until the model is served, or could not be loaded."""
        async with self._settled:
            await self._settled.wait_for(lambda: self.serving is not None or self.failure is not None)

    def _goal(self) -> Literal["serve", "keep", "stop"]:
        if self._asleep or self._left:
            return "stop"
        if self._pauses() or (self.plan.wanted and not self.plan.usable):
            return "keep"
        if self.plan.usable and (self.plan.wanted or (self.plan.on_demand and self._demanded)):
            return "serve"
        return "stop"

    def _pauses(self) -> bool:
        return self.failure is not None and asyncio.get_running_loop().time() < self.failure.retry_at

    # what it is

    def status(self) -> ModelStatus:
        plan, servings = self.plan, [each for each in (self.serving, self._next) if each is not None]
        if not servings and plan.spec is None:
            return ModelStatus(name=plan.name, spec=ModelSpec(name=plan.name), reason=plan.reason, task=None)
        parts = [
            ModelStatus(
                name=plan.name,
                spec=serving.spec,
                versions=serving.board.statuses(serving.statistics()),
                task=serving.task,
            )
            for serving in servings
        ]
        if plan.spec is not None:
            unserved = tuple(
                VersionStatus(version=str(version), state="UNAVAILABLE", reason=self._absence())
                for version in plan.versions
            )
            task: Task | None = None if plan.spec.backend == HEADRACE else "predict"
            parts.append(ModelStatus(name=plan.name, spec=plan.spec, versions=unserved, task=task))
        [status] = join(parts)
        return msgspec.structs.replace(status, on_demand=plan.on_demand and not self._pauses())

    def _absence(self) -> str:
        return self.failure.reason if self.failure is not None else UNLOADED

    # its task

    async def run(self) -> None:
        """Follow the plan until cancelled; then finish the requests within the grace time."""
        try:
            while True:
                self._work.clear()
                try:
                    await self._settle(self.plan)
                except Unavailable as error:
                    log.warning("model_not_settled", model=self.plan.name, error=error.message)
                    asyncio.get_running_loop().call_later(RETRY_S, self._work.set)
                async with self._settled:
                    self._settled.notify_all()
                self._context.changed()
                await self._work.wait()
        finally:
            await self._stop_watching()
            await self._stop_serving()

    async def _settle(self, plan: Plan) -> None:
        """Load or unload what the plan says, and answer its order."""
        if self._broken:
            await self._stop_serving()
        goal = self._goal()
        if goal == "serve":
            await self._stop_watching()
            await self._serve(plan)
        elif goal == "stop":
            await self._stop_serving()
        if self.serving is None and self._watch is None:
            self._watch = asyncio.create_task(self._attend_queue(), name=f"queue-{plan.name}")
        await self._answer(plan)

    async def _serve(self, plan: Plan) -> None:
        """Load what is missing, and note the failure if that is impossible."""
        try:
            for component in sorted(plan.components):
                await self._need(component)
            if self.serving is not None and self.serving.fits(plan):
                await self.serving.update(plan)
            else:
                await self._replace(plan)
        except ConfigError as error:
            self._fail(error.message)
        else:
            self.failure = None
            log.info("model_loaded", model=plan.name, versions=list(plan.versions))

    async def _replace(self, plan: Plan) -> None:
        """Load a plan for which the present serving cannot be updated, and then unload that."""
        self._next = made = self._make_serving(plan, self._context, self._on_failure)
        try:
            try:
                await made.update(plan)
            except MemoryExceeded:
                if self.serving is None:
                    raise
                await self._stop_serving()  # its requests wait meanwhile
                await made.update(plan)
        except BaseException:
            if self.serving is None and made.serves:
                self.serving = made  # some of its versions could be loaded
            else:
                await made.stop(0)
            raise
        finally:
            self._next = None
        old, self.serving = self.serving, made
        if old is not None:
            await old.stop()

    async def _stop_serving(self) -> None:
        if self.serving is not None:
            await self.serving.stop(self._context.grace)
            log.info("model_unloaded", model=self.plan.name)
        self.serving, self._broken = None, False

    # failures

    def _fail(self, reason: str) -> None:
        count = self.failure.count + 1 if self.failure is not None else 1
        pause = min(FIRST_PAUSE_S * 2.0 ** min(count - 1, MAX_DOUBLINGS), MAX_PAUSE_S)
        log.error("model_load_failed", model=self.plan.name, reason=reason, retry_in=pause)
        self._pause(Failure(reason, asyncio.get_running_loop().time() + pause, count))
        self._demanded = self.serving is not None

    def _on_failure(self, reason: str) -> None:
        """Load a model whose engine has failed again, after a pause; its requests wait."""
        self._broken = True
        self._pause(Failure(reason, asyncio.get_running_loop().time() + FIRST_PAUSE_S, refuses=False))
        self._work.set()

    def _pause(self, failure: Failure) -> None:
        self.failure = failure
        if self._retry is not None:
            self._retry.cancel()
        self._retry = asyncio.get_running_loop().call_at(failure.retry_at, self._work.set)

    # requests while it is not served

    async def _attend_queue(self) -> None:
        """Have the model loaded once requests wait for it, or refuse them with the reason."""
        while True:
            await wait_for_requests(self._context.backend, self.plan.name)
            if self._asleep or (self._pauses() and self.failure is not None and not self.failure.refuses):
                await asyncio.sleep(RETRY_S)
            elif self.plan.on_demand and not self._pauses():
                self.demand()
                return
            else:
                await self._refuse()

    def _refusal(self) -> HeadraceError:
        name, reason = self.plan.name, self.failure.reason if self.failure is not None else self.plan.reason
        if reason:
            return ModelUnavailable(f"{name} cannot be loaded: {reason}", param="model")
        return ModelNotFound(f"the model {name!r} is not loaded; see /v1/models", param="model")

    async def _refuse(self) -> None:
        name = self.plan.name
        try:
            await refuse_waiting(name, self._refusal(), self._context)
        except Unavailable as outage:
            log.warning("queue_unavailable", model=name, error=outage.message)
            await asyncio.sleep(RETRY_S)

    async def _stop_watching(self) -> None:
        if (watch := self._watch) is not None:
            watch.cancel()
            await asyncio.wait([watch])  # to await it itself would take a cancellation of this task for its own
            self._watch = None
            if not watch.cancelled():
                watch.result()

    async def _answer(self, plan: Plan) -> None:
        """Answer the plan's order. Raises Unavailable."""
        if not plan.order or plan.order == self._answered:
            return
        error = ""
        if plan.wanted and (self.failure is not None or not plan.usable):
            error = self.failure.reason if self.failure is not None else plan.reason
        await self._context.backend.repository.answer(OrderResult(id=plan.order, error=error))
        self._answered = plan.order
