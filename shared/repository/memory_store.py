"""The store of the repository in the memory of one process, whose workers need no heartbeat."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from shared.redis import keys
from shared.repository.joining import join
from shared.repository.status import ModelStatus
from shared.repository.store import ModelOrder, OrderResult


class MemoryRepositoryStore:
    """RepositoryStore in memory.

    Args:
        publish: publishes a message to the readers of a channel.
    """

    def __init__(self, publish: Callable[[str, bytes], None]) -> None:
        self._publish = publish
        self._statuses: dict[str, tuple[ModelStatus, ...]] = {}
        self._orders: dict[str, ModelOrder] = {}
        self._results: dict[str, OrderResult] = {}
        self._loads: defaultdict[str, set[str]] = defaultdict(set)

    async def report(self, worker_id: str, statuses: Sequence[ModelStatus]) -> None:
        self._statuses[worker_id] = tuple(statuses)

    async def statuses(self) -> list[ModelStatus]:
        return join(status for statuses in self._statuses.values() for status in statuses)

    async def place(self, order: ModelOrder) -> None:
        self._orders[order.model] = order
        self._publish(keys.REPOSITORY_WAKE, order.model.encode())

    async def orders(self) -> list[ModelOrder]:
        return list(self._orders.values())

    async def begin_load(self, load: str, worker_id: str) -> frozenset[str]:
        self._loads[load].add(worker_id)
        return frozenset(self._loads[load])

    async def end_load(self, load: str, worker_ids: Sequence[str]) -> None:
        self._loads[load].difference_update(worker_ids)

    async def answer(self, result: OrderResult) -> None:
        self._results.setdefault(result.id, result)

    async def result(self, order_id: str) -> OrderResult | None:
        return self._results.get(order_id)
