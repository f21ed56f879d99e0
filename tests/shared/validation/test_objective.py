"""The headers of llm-d's objective."""

from __future__ import annotations

import pytest

from shared.protocol import PriorityClass
from shared.validation.objective import with_objective
from tests.support.fakes import make_request

OURS, OLD = "x-llm-d-inference-objective", "x-gateway-inference-objective"


@pytest.mark.parametrize(
    ("headers", "priority"),
    [
        ({}, PriorityClass.STANDARD),
        ({OURS: "interactive"}, PriorityClass.INTERACTIVE),
        ({OLD: " batch "}, PriorityClass.BATCH),
        ({OLD: "batch", OURS: "interactive"}, PriorityClass.INTERACTIVE),
        ({OLD: "batch", OURS: "premium"}, PriorityClass.STANDARD),
        ({OURS: "Batch"}, PriorityClass.STANDARD),
        ({OURS: ""}, PriorityClass.STANDARD),
    ],
)
def test_an_objective_named_as_a_class_is_the_class(headers: dict[str, str], priority: PriorityClass) -> None:
    assert with_objective(make_request(priority=PriorityClass.STANDARD), headers).priority is priority
