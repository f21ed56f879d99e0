"""Weights of a model's workers, when one of them starts."""

from __future__ import annotations

import pytest

from shared.errors import ConfigError
from shared.models.worker_registry import WorkerInfo
from shared.routing.weight_check import check_weight
from shared.settings import Settings

WEIGHTED = Settings(routing="weighted-round-robin")


def info(worker: str, weight: float | None, *, model: str = "m", state: str = "ready") -> WorkerInfo:
    return WorkerInfo(id=worker, pid=1, model=model, state=state, weight=weight)


@pytest.mark.parametrize(
    ("own", "other", "told"),
    [
        (2.0, None, "2 here and not set at the worker other"),
        (None, 0.5, "not set here and 0.5 at the worker other"),
    ],
)
def test_a_worker_that_differs_is_refused(own: float | None, other: float | None, told: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^routing_weight must be set for all workers of m or for none"
    ) as refused:
        check_weight(info("own", own), [info("own", own), info("other", other)], WEIGHTED)
    assert told in refused.value.message


def test_workers_that_agree_or_do_not_matter_are_accepted() -> None:
    others = [info("a", 3), info("b", None, model="n"), info("c", None, state="draining")]
    check_weight(info("own", 1), others, WEIGHTED)
    check_weight(info("own", None), [info("a", None)], WEIGHTED)
    check_weight(info("own", 1), [info("a", None)], Settings(routing="least-connections"))
