"""Views of a queue for operators: its gates, what waits, who is served, and the share that each should get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, cast, get_args

import msgspec

from shared.protocol import PriorityClass
from shared.queue.interface import CLASS_WEIGHTS

Gate = Literal["open", "paused", "draining"]
MAX_GATES = 65  # of one queue: the model's, and those of tenants
SERVED_WINDOW_S = 60  # shares are measured over one to two such periods

CLASSES = tuple(PriorityClass)


def gate_of(text: bytes) -> Gate:
    """Return a stored gate; one that another program wrote counts as open, as it does for the queue."""
    found = text.decode(errors="replace")
    return cast(Gate, found) if found in get_args(Gate) else "open"


class LaneSurvey(NamedTuple):
    """One tenant in one class: its waiting requests, the tokens it was served lately, and its oldest one's birth.

    `born` is in seconds since the epoch; None if nothing waits.
    """

    waiting: int
    served: int
    born: float | None


class TenantSurvey(NamedTuple):
    """One tenant of a queue; `lanes` has each class, the most urgent first."""

    tenant: str
    gate: Gate
    waiting_tokens: int
    lanes: Sequence[LaneSurvey]


class QueueSurvey(NamedTuple):
    """State of a queue at the time `now`, in seconds since the epoch; `truncated` if there are more tenants."""

    gate: Gate
    now: float
    waiting: int
    waiting_tokens: int
    held: Mapping[PriorityClass, int]
    tenants: Sequence[TenantSurvey]
    truncated: bool = False


class RecentRequest(NamedTuple):
    """A request that was published, and its place among those of all queues by time."""

    cursor: tuple[int, int]  # milliseconds since the epoch, and a number within them
    job_id: str


class ClassView(msgspec.Struct):
    """One class: `weight_share` of the tokens is what it should get, `share` what it got in the last minutes."""

    priority: str
    waiting: int
    held: int
    weight: int
    weight_share: float
    share: float | None


class TenantView(msgspec.Struct):
    """One tenant of a queue; `held` is None if too many requests are held to count them by tenant."""

    tenant: str
    state: Gate
    waiting: int
    waiting_tokens: int
    held: int | None
    oldest_age: float
    weight_share: float
    share: float | None


class QueueView(msgspec.Struct):
    """The queue of one model. Ages are in seconds; shares are of tokens, from 0 to 1, None if none was served."""

    model: str
    state: Gate
    waiting: int
    waiting_tokens: int
    held: int
    oldest_age: float
    classes: list[ClassView]
    tenants: list[TenantView]
    truncated: bool


def view_of(model: str, survey: QueueSurvey, held_by: Mapping[str, int] | None) -> QueueView:
    """Return the view of a survey.

    Args:
        held_by: how many requests workers hold of each tenant; None if that is unknown.
    """
    total = sum(lane.served for tenant in survey.tenants for lane in tenant.lanes)
    shares = _weight_shares(survey.tenants)
    tenants = [
        TenantView(
            tenant=each.tenant,
            state=each.gate,
            waiting=sum(lane.waiting for lane in each.lanes),
            waiting_tokens=each.waiting_tokens,
            held=None if held_by is None else held_by.get(each.tenant, 0),
            oldest_age=_age(survey.now, each.lanes),
            weight_share=round(sum(shares[i] for i, lane in enumerate(each.lanes) if _is_active(lane)), 4),
            share=round(sum(lane.served for lane in each.lanes) / total, 4) if total else None,
        )
        for each in survey.tenants
    ]
    return QueueView(
        model=model,
        state=survey.gate,
        waiting=survey.waiting,
        waiting_tokens=survey.waiting_tokens,
        held=sum(survey.held.values()),
        oldest_age=max((tenant.oldest_age for tenant in tenants), default=0.0),
        classes=[_class_view(survey, i, shares[i], total) for i in range(len(CLASSES))],
        tenants=tenants,
        truncated=survey.truncated,
    )


def _class_view(survey: QueueSurvey, index: int, tenant_share: float, total: int) -> ClassView:
    priority, lanes = CLASSES[index], [tenant.lanes[index] for tenant in survey.tenants]
    return ClassView(
        priority=priority.value,
        waiting=sum(lane.waiting for lane in lanes),
        held=survey.held[priority],
        weight=CLASS_WEIGHTS[priority],
        weight_share=round(tenant_share * sum(map(_is_active, lanes)), 4),
        share=round(sum(lane.served for lane in lanes) / total, 4) if total else None,
    )


def _is_active(lane: LaneSurvey) -> bool:
    return bool(lane.waiting or lane.served)


def _weight_shares(tenants: Sequence[TenantSurvey]) -> list[float]:
    """Return the share of one tenant in each class: its classes share by weight, the tenants of a class equally."""
    counts = [sum(_is_active(tenant.lanes[i]) for tenant in tenants) for i in range(len(CLASSES))]
    total = sum(CLASS_WEIGHTS[priority] for priority, count in zip(CLASSES, counts, strict=True) if count)
    return [
        CLASS_WEIGHTS[priority] / total / count if count else 0.0
        for priority, count in zip(CLASSES, counts, strict=True)
    ]


def _age(now: float, lanes: Sequence[LaneSurvey]) -> float:
    """Return the age of the oldest waiting request, in seconds."""
    return round(max((now - lane.born for lane in lanes if lane.born is not None), default=0.0), 3)
