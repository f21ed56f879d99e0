"""Readiness of a model, from the heartbeats of its workers."""

from __future__ import annotations

import pytest

from producer_api.admission.readiness import absence_of, readiness_of
from shared.models.worker_registry import UNHEALTHY_STATUS, WorkerExit, WorkerInfo, WorkerState

LOADING = "m is loading, 70% done"
HUNG = "hung workers of m are being replaced: 1 of {}"
DRAINING = "workers of m are shutting down"
TOO_FEW = "{} of {} workers that m needs are ready"


def workers(*states: WorkerState) -> list[WorkerInfo]:
    """Return workers in these states, of which the last has loaded most."""
    return [
        WorkerInfo(id=str(number), pid=1, model="m", state=state, progress=0.7 if number == len(states) else 0.2)
        for number, state in enumerate(states, 1)
    ]


@pytest.mark.parametrize(
    ("states", "needed", "ready", "reasons"),
    [
        (["ready"], 1, True, {}),
        (["ready", "loading"], 1, True, {}),
        (["ready", "draining"], 1, True, {}),
        (["ready", "ready", "hung"], 2, True, {"hung_workers": HUNG.format(3)}),
        ([], 1, False, {"no_worker": "no worker serves m"}),
        (["loading", "loading"], 1, False, {"loading": LOADING}),
        (["hung"], 1, False, {"hung_workers": HUNG.format(1)}),
        (["draining"], 1, False, {"workers_draining": DRAINING}),
        (["sleeping"], 1, False, {"sleeping": "m is asleep"}),
        (["ready"], 2, False, {"too_few_workers": TOO_FEW.format(1, 2)}),
        (
            ["ready", "hung", "draining", "loading"],
            3,
            False,
            {
                "hung_workers": HUNG.format(4),
                "loading": LOADING,
                "workers_draining": DRAINING,
                "too_few_workers": TOO_FEW.format(1, 3),
            },
        ),
    ],
)
def test_every_reason_is_listed(
    states: list[WorkerState], needed: int, ready: bool, reasons: dict[str, str]
) -> None:
    found = readiness_of("m", workers(*states), needed=needed, absence="no worker serves m")
    assert found.ready is ready
    assert {reason.code: reason.message for reason in found.reasons} == reasons
    assert found.progress == (1.0 if ready else 0.7 if states else 0.0)


@pytest.mark.parametrize(
    ("status", "restart_in", "words"),
    [
        (1, 9, "no worker serves m; the last one exited with code 1 3 s ago, restart in 9 s"),
        (-9, -1, "no worker serves m; the last one was killed by signal 9 3 s ago, restarting now"),
        (
            UNHEALTHY_STATUS,
            1,
            "no worker serves m; the last one exited with code 86, because its engine hung, 3 s ago, "
            "restart in 1 s",
        ),
    ],
)
def test_the_last_exit_is_described(status: int, restart_in: float, words: str) -> None:
    assert absence_of("m", WorkerExit(status=status, at=97.0, restart_at=100.0 + restart_in), 100.0) == words


def test_without_a_recorded_exit_there_is_no_cause() -> None:
    assert absence_of("m", None, 100.0) == "no worker serves m"
