"""Interface of the store of what workers and the API tell each other about the repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from shared.repository.status import ModelStatus

RESULT_TTL_S = 3600  # for which the outcome of an order is kept
LOAD_TTL_S = 86_400  # for which a load that never ended is remembered


class ModelOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The wish that a model is loaded, or is not, which outlives all processes.

    Attributes:
        id: unique; a status that follows from the order is reported after it.
        config: a ModelConfig as JSON text that replaces the one in the repository; "" for none.
        files: contents by path, `<version>/<name>`, that replace all versions in the repository.
        unload_dependents: unload the models that an ensemble consists of, too.
    """

    id: str
    model: str
    action: Literal["load", "unload"]
    config: str = ""
    files: Mapping[str, bytes] = {}
    unload_dependents: bool = False


class OrderResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Outcome of an order: no `error`, or why the model could not be loaded."""

    id: str
    error: str = ""


class RepositoryStore(Protocol):
    """Statuses of models, and orders. Every call may raise Unavailable."""

    async def report(self, worker_id: str, statuses: Sequence[ModelStatus]) -> None:
        """Replace the statuses of a worker's models; they expire as its heartbeat does. It leaves with none."""

    async def statuses(self) -> list[ModelStatus]:
        """Return the status of each model, by name, joined over the workers that have it."""

    async def place(self, order: ModelOrder) -> None:
        """Store an order in place of the model's last one, and publish it on the channel REPOSITORY_WAKE."""

    async def orders(self) -> list[ModelOrder]:
        """Return the last order of each model that has one."""

    async def begin_load(self, load: str, worker_id: str) -> frozenset[str]:
        """Record that a worker begins to load something; return the workers whose loading has not ended, with it.

        Those of them that are lost were lost while they loaded it.
        """

    async def end_load(self, load: str, worker_ids: Sequence[str]) -> None:
        """Record that workers have ended to load something, or that their loss no longer counts."""

    async def answer(self, result: OrderResult) -> None:
        """Record that an order was carried out, or that it failed. The first answer of several workers is kept."""

    async def result(self, order_id: str) -> OrderResult | None:
        """Return the outcome of an order; None before there is one."""
