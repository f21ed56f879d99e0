"""The metadata of a trigger in KEDA's ScaledObject: the model, and the targets of its workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from producer_api.admission.scaling import ModelLoad
from shared.errors import InvalidRequest
from shared.numbers import decimal
from shared.protocol import PriorityClass

MIN_TARGET, MAX_NUMBER = 0.001, 1e12  # KEDA counts thousandths
MAX_VALUE = 1e15  # of a metric: KEDA counts thousandths in 64 bits
# The metrics by the name of their target. A value is that of all workers together.
TARGETS = {
    "requestsPerReplica": "headrace-requests",
    "tokensPerReplica": "headrace-tokens",
    "targetWait": "headrace-wait",
}
REQUESTS, TOKENS, WAIT = TARGETS.values()


@dataclass(frozen=True)
class ScalerMetadata:
    """Model, class and targets of a trigger.

    Attributes:
        priority: the class whose requests count; None for all.
        targets: for each worker, by the name of the metric; empty for one request per seat.
        activation: number of waiting requests up to which the model stays at zero.
    """

    model: str
    priority: PriorityClass | None
    targets: Mapping[str, float]
    activation: float

    @classmethod
    def parse(cls, metadata: Mapping[str, str]) -> Self:
        """Read the metadata; keys of KEDA's own are ignored. Raises InvalidRequest."""
        model = metadata.get("model", "")
        if not model:
            raise InvalidRequest("model must name a model in the metadata of the trigger", param="model")
        priority = _priority(metadata.get("class", ""))
        targets = {
            metric: _number(metadata, name, least=MIN_TARGET)
            for name, metric in TARGETS.items()
            if name in metadata
        }
        if TOKENS in targets and priority is not None:
            raise InvalidRequest(
                "tokensPerReplica counts the tokens of all classes; leave out class", param="tokensPerReplica"
            )
        activation = _number(metadata, "activationThreshold") if "activationThreshold" in metadata else 0.0
        return cls(model, priority, targets, activation)

    def is_active(self, load: ModelLoad) -> bool:
        """Return True if the model needs a worker: more requests wait than the threshold, or some are held."""
        own = load.of_class(self.priority)
        return own.held > 0 or own.waiting > self.activation

    def targets_for(self, load: ModelLoad) -> Mapping[str, float]:
        """Return the targets; by default, one request for each seat of a worker."""
        return self.targets or {REQUESTS: float(load.seats)}

    def value(self, metric: str, load: ModelLoad) -> float:
        """Return the value of a metric, which KEDA divides by its target to get the number of workers."""
        own = load.of_class(self.priority)
        value: float = own.waiting + own.held
        if metric == TOKENS:
            value = load.tokens_waiting + load.tokens_in_flight
        elif metric == WAIT:  # as many times the workers as the wait is too long
            value = own.wait_estimate * max(load.workers, 1)
        return min(value, MAX_VALUE)


def _priority(name: str) -> PriorityClass | None:
    allowed = [priority.value for priority in PriorityClass]
    if name and name not in allowed:
        raise InvalidRequest(f"class must be one of {', '.join(allowed)}, got {name[:64]!r}", param="class")
    return PriorityClass(name) if name else None


def _number(metadata: Mapping[str, str], name: str, *, least: float = 0.0) -> float:
    """Return a number of the metadata. Raises InvalidRequest that names it."""
    value = decimal(text := metadata[name])
    if value is None or not least <= value <= MAX_NUMBER:
        raise InvalidRequest(
            f"{name} must be a decimal number from {least:g} to {MAX_NUMBER:.0f}, got {text[:64]!r}", param=name
        )
    return value
