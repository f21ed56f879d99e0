"""Router: chooses a worker for each request that this process publishes, by the policy of its model.

Requests of one sequence go to one worker, which keeps the state between them, whatever the policy.

The workers' heartbeats say how fast they are, and the queue how much each has in flight. Between two looks at the
queue, the router adds what it sends itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from shared.metrics.common import ROUTED
from shared.models.worker_registry import Registry, WorkerInfo
from shared.protocol import Infer, Request
from shared.routing.interface import Policy, WorkerState
from shared.routing.selection import make_policy, policy_name
from shared.routing.sequences import SequencePlaces
from shared.routing.traits import traits_of
from shared.settings import Settings

HEARTBEATS_LIFE_S = 1.0  # as long as a heartbeat of the default lease
LOADS_LIFE_S = 0.005  # for which neither what other replicas send is seen, nor what has ended
FOREVER_S = 1e9  # that a request of a sequence waits for the worker that has its state

Loads = Callable[[str], Awaitable[Mapping[str, int]]]  # of a model: tokens in flight by worker that takes requests


@dataclass
class Fleet:
    """The workers of one model that take requests, as of the event loop's time `seen`.

    `policy` is None under `pull`. `sequences` is None for a model without any.
    """

    policy: Policy | None
    sequences: SequencePlaces | None = None
    workers: dict[str, WorkerState] = dataclasses.field(default_factory=dict)
    seen: float = float("-inf")

    def add(self, worker: str, tokens: int) -> None:
        state = self.workers[worker]
        self.workers[worker] = dataclasses.replace(state, tokens_in_flight=state.tokens_in_flight + tokens)


class Router(Collector):
    """Chooses workers under the settings' policies; also a collector of metrics for Prometheus.

    Args:
        registry: has the workers' heartbeats.

    Attributes:
        outcomes: requests by model and outcome: `aimed` at a worker, `unaimed` because none was known, `returned`
            and taken by another worker.
    """

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._registry = registry
        self._settings = settings
        self._fleets: dict[str, Fleet] = {}
        self._heartbeats: list[WorkerInfo] = []
        self._heartbeats_read = float("-inf")
        self._reading = asyncio.Lock()
        self.outcomes: Counter[tuple[str, str]] = Counter()

    def routes(self, model: str) -> bool:
        """Return False under the policy `pull`, except for a model with sequences."""
        fleet = self._fleet(model)
        return fleet.policy is not None or fleet.sequences is not None

    def keep_sequences(self, model: str) -> None:
        """Note that the model has sequences; its workers must know before they pull."""
        fleet = self._fleet(model)
        fleet.sequences = fleet.sequences or SequencePlaces()

    def patience(self, model: str) -> float:
        """Return the seconds that a request waits for its worker while another has room."""
        return self._settings.routing_patience if self._fleet(model).sequences is None else FOREVER_S

    async def aims(self, requests: Sequence[Request], loads: Loads) -> list[str]:
        """Return the worker that each request is aimed at; empty for any. Raises Unavailable."""
        for request in requests:
            if isinstance(request.work, Infer) and request.work.sequence is not None:
                self.keep_sequences(request.model)
        for model in {request.model for request in requests}:
            if self.routes(model):
                await self._look(model, self._fleet(model), loads)
        return [self._aim(request) for request in requests]

    def count(self, model: str, outcome: str, requests: int = 1) -> None:
        """Count requests of a routed model for the metrics."""
        self.outcomes[model, outcome] += requests

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the counters for Prometheus."""
        family = CounterMetricFamily(ROUTED.name, ROUTED.text, labels=ROUTED.labels)
        for (model, outcome), number in sorted(dict(self.outcomes).items()):
            family.add_metric([model, policy_name(self._settings, model), outcome], number)
        yield family

    def _fleet(self, model: str) -> Fleet:
        if model not in self._fleets:  # only models that exist are published for
            self._fleets[model] = Fleet(make_policy(self._settings, model))
        return self._fleets[model]

    def _aim(self, request: Request) -> str:
        fleet = self._fleet(request.model)
        step = request.work.sequence if isinstance(request.work, Infer) else None
        if fleet.policy is None and step is None:
            return ""
        if not fleet.workers:
            self.count(request.model, "unaimed")
            return ""
        workers = list(fleet.workers.values())
        traits = traits_of(request, self._settings.routing_key)
        if step is not None and fleet.sequences is not None:
            chosen = fleet.sequences.place(request.tenant, step, workers)
        else:
            assert fleet.policy is not None
            chosen = fleet.policy.choose(traits, workers)
        fleet.add(chosen, traits.tokens)
        self.count(request.model, "aimed")
        return chosen

    async def _look(self, model: str, fleet: Fleet, loads: Loads) -> None:
        """Bring the state of a model's workers up to date; concurrent calls share one look."""
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if now - fleet.seen < LOADS_LIFE_S:
                return
            if now - self._heartbeats_read >= HEARTBEATS_LIFE_S:
                self._heartbeats, self._heartbeats_read = await self._registry.workers(), now
            tokens = await loads(model)
            ready = (
                info
                for info in self._heartbeats
                if info.model == model and info.state == "ready" and not info.fault
            )
            states = [_state(info, tokens[info.id]) for info in ready if info.id in tokens]
            fleet.workers = {state.id: state for state in sorted(states, key=lambda state: state.id)}
            fleet.seen = now


def _state(info: WorkerInfo, tokens: int) -> WorkerState:
    return WorkerState(info.id, tokens, info.tokens_per_s, info.first_token_s, info.weight)
