"""The store of the repository in the memory of one process, whose workers need no heartbeat."""

from __future__ import annotations

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

    async def report(self, worker_id: str, statuses: Sequence[ModelStatus]) -> None:
        self._statuses[worker_id] = tuple(statuses)

    async def statuses(self) -> list[ModelStatus]:
        return join(status for statuses in self._statuses.values() for status in statuses)

    async def place(self, order: ModelOrder) -> None:
        self._orders[order.model] = order
        self._publish(keys.REPOSITORY_WAKE, order.model.encode())

    async def orders(self) -> list[ModelOrder]:
        return list(self._orders.values())

    async def answer(self, result: OrderResult) -> None:
        self._results.setdefault(result.id, result)

    async def result(self, order_id: str) -> OrderResult | None:
        return self._results.get(order_id)
