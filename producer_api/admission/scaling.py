"""Load of a model, and the workers that it needs, for autoscalers. All numbers are finite."""

from __future__ import annotations

import math

import msgspec

from producer_api.admission.model_catalog import ModelCatalog
from shared.backend import Backend
from shared.errors import ModelNotFound
from shared.protocol import PriorityClass
from shared.queue.interface import ClassDemand


class ClassLoad(msgspec.Struct, frozen=True):
    """Load of one class.

    Attributes:
        waiting: requests in the queue that workers may take; what is paused asks for no worker.
        held: requests that workers have taken and not finished.
        oldest_age: of the waiting requests, in seconds; 0 if none waits.
        wait_estimate: seconds until the last waiting request starts, by the recent speed of the workers; at least
            `oldest_age`, and exactly that while no speed is known.
    """

    waiting: int
    held: int
    oldest_age: float
    wait_estimate: float

    @classmethod
    def from_demand(cls, demand: ClassDemand) -> ClassLoad:
        estimate = demand.waiting / demand.rate if demand.rate > 0 else 0.0
        age = demand.oldest_age
        return cls(demand.waiting, demand.held, round(age, 3), round(max(estimate, age), 3))


class ModelLoad(msgspec.Struct, frozen=True):
    """Load of one model; the numbers of ClassLoad over all classes, and the following.

    Attributes:
        paused: requests in the queue, besides the waiting ones, that no worker may take: an operator paused the
            model or their tenants.
        tokens_waiting: estimated tokens of the waiting requests.
        tokens_in_flight: tokens that the workers may still compute for the requests that they hold.
        workers: that are ready.
        seats: sequences that one worker runs at once.
        desired_workers: workers whose seats hold all requests, waiting and held.
        active: requests wait or are held, so that the model needs a worker.
        classes: the loads of the classes.
    """

    model: str
    waiting: int
    paused: int
    held: int
    tokens_waiting: int
    tokens_in_flight: int
    oldest_age: float
    wait_estimate: float
    workers: int
    seats: int
    desired_workers: int
    active: bool
    classes: dict[str, ClassLoad]

    def of_class(self, priority: PriorityClass | None) -> ClassLoad:
        """Return the load of one class; of all together for None."""
        if priority is not None:
            return self.classes[priority.value]
        return ClassLoad(self.waiting, self.held, self.oldest_age, self.wait_estimate)


async def load_of(backend: Backend, catalog: ModelCatalog, model: str, *, default_seats: int) -> ModelLoad:
    """Return the load of a model, which needs no worker.

    Args:
        default_seats: of a worker, until one has announced its own.

    Raises:
        ModelNotFound, Unavailable.
    """
    snapshot = await catalog.snapshot()
    info = snapshot.served.get(model)
    if info is None:
        raise ModelNotFound(f"the model {model[:128]!r} does not exist; see /v1/models", param="model")
    demand = await backend.transport.demand(model)
    depth = demand.depth
    classes = {priority.value: ClassLoad.from_demand(each) for priority, each in demand.classes.items()}
    workers = [worker for worker in snapshot.workers if worker.model == model]
    seats = info.max_num_seqs or default_seats
    estimates = [depth.open_age, *(each.wait_estimate for each in classes.values())]
    requests = depth.open + depth.held
    return ModelLoad(
        model=model,
        waiting=depth.open,
        paused=depth.paused,
        held=depth.held,
        tokens_waiting=max(0, depth.waiting_tokens - depth.paused_tokens),
        tokens_in_flight=sum(worker.tokens_in_flight for worker in workers),
        oldest_age=round(depth.open_age, 3),
        wait_estimate=round(max(estimates), 3),
        workers=sum(worker.state == "ready" for worker in workers),
        seats=seats,
        desired_workers=math.ceil(requests / seats),
        active=requests > 0,
        classes=classes,
    )
