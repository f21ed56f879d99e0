"""Statuses of several workers joined: a model as the callers of all its workers see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from shared.repository.status import (
    BatchStatistics,
    Duration,
    ModelStatus,
    VersionState,
    VersionStatistics,
    VersionStatus,
)

BEST_FIRST: tuple[VersionState, ...] = ("READY", "LOADING", "UNLOADING", "UNAVAILABLE")


def join(statuses: Iterable[ModelStatus]) -> list[ModelStatus]:
    """Return one status for each model, by name.

    A version is in the best state that it has on any worker, and its statistics are the sums over all.
    """
    by_model: dict[str, list[ModelStatus]] = {}
    for status in statuses:
        by_model.setdefault(status.name, []).append(status)
    return [_join_model(by_model[name]) for name in sorted(by_model)]


def _join_model(found: list[ModelStatus]) -> ModelStatus:
    if len(found) == 1:
        return found[0]
    best = max(found, key=lambda status: (len(status.ready), not status.reason))
    by_version: dict[str, list[VersionStatus]] = {}
    for status in found:
        for version in status.versions:
            by_version.setdefault(version.version, []).append(version)
    return msgspec.structs.replace(
        best,
        versions=tuple(_join_version(by_version[version]) for version in sorted(by_version, key=_age)),
        task=next((status.task for status in (best, *found) if status.task is not None), None),
        on_demand=any(status.on_demand for status in found),
    )


def _age(version: str) -> tuple[int, str]:
    return len(version), version  # the order of numbers, for whatever another program may have written


def _join_version(found: list[VersionStatus]) -> VersionStatus:
    best = min(found, key=lambda version: (BEST_FIRST.index(version.state), -version.progress))
    return msgspec.structs.replace(best, statistics=_add([version.statistics for version in found]))


def _add(found: list[VersionStatistics]) -> VersionStatistics:
    durations = (name for name, kind in VersionStatistics.__annotations__.items() if kind == "Duration")
    return VersionStatistics(
        last_inference=max(each.last_inference for each in found),
        inference_count=sum(each.inference_count for each in found),
        execution_count=sum(each.execution_count for each in found),
        batches=_add_batches(batch for each in found for batch in each.batches),
        failures=dict(sum((Counter(each.failures) for each in found), Counter())),
        pending=sum(each.pending for each in found),
        memory_bytes=sum(each.memory_bytes for each in found),
        **{name: _total(getattr(each, name) for each in found) for name in durations},
    )


def _add_batches(batches: Iterable[BatchStatistics]) -> tuple[BatchStatistics, ...]:
    by_size: dict[int, list[BatchStatistics]] = {}
    for batch in batches:
        by_size.setdefault(batch.batch_size, []).append(batch)
    return tuple(
        BatchStatistics(
            batch_size=size,
            compute_input=_total(batch.compute_input for batch in same),
            compute_infer=_total(batch.compute_infer for batch in same),
            compute_output=_total(batch.compute_output for batch in same),
        )
        for size, same in sorted(by_size.items())
    )


def _total(durations: Iterable[Duration]) -> Duration:
    found = list(durations)
    return Duration(sum(each.count for each in found), sum(each.ns for each in found))
