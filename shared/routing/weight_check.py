"""Check of the weights of a model's workers, when one of them starts."""

from __future__ import annotations

from collections.abc import Iterable

from shared.errors import ConfigError
from shared.models.worker_registry import WorkerInfo
from shared.routing.selection import policy_name
from shared.settings import Settings


def check_weight(own: WorkerInfo, workers: Iterable[WorkerInfo], settings: Settings) -> None:
    """Raise ConfigError if, under weighted-round-robin, only some workers of a model have a weight."""
    if policy_name(settings, own.model) != "weighted-round-robin":
        return
    for other in workers:
        if other.model != own.model or other.id == own.id or other.state == "draining":
            continue
        if (other.weight is None) != (own.weight is None):
            raise ConfigError(
                f"routing_weight must be set for all workers of {own.model} or for none: it is "
                f"{_shown(own.weight)} here and {_shown(other.weight)} at the worker {other.id}",
                param="routing_weight",
            )


def _shown(weight: float | None) -> str:
    return "not set" if weight is None else f"{weight:g}"
