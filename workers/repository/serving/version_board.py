"""States of the versions that a worker process has of one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shared.models.startup_progress import StartupProgress
from shared.repository.status import VersionState, VersionStatistics, VersionStatus

NO_STATISTICS = VersionStatistics()


@dataclass(frozen=True)
class _Place:
    state: VersionState
    reason: str
    progress: StartupProgress | None


class VersionBoard:
    """States by version.

    Args:
        changed: called after each change.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._places: dict[int, _Place] = {}

    def set(
        self, version: int, state: VersionState, reason: str = "", progress: StartupProgress | None = None
    ) -> None:
        self._places[version] = _Place(state, reason, progress)
        self._changed()

    def remove(self, version: int) -> None:
        self._places.pop(version, None)
        self._changed()

    def statuses(self, statistics: Mapping[int, VersionStatistics]) -> tuple[VersionStatus, ...]:
        """Return the statuses, the oldest version first."""
        return tuple(
            VersionStatus(
                version=str(version),
                state=place.state,
                reason=place.reason,
                progress=_share(place),
                statistics=statistics.get(version, NO_STATISTICS),
            )
            for version, place in sorted(self._places.items())
        )


def _share(place: _Place) -> float:
    if place.state in ("READY", "UNLOADING"):
        return 1.0
    return round(place.progress.share, 3) if place.progress is not None else 0.0
