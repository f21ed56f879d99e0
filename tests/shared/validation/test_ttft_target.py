"""The headers of a target for the first token."""

from __future__ import annotations

import pytest

from shared.errors import InvalidRequest
from shared.validation.ttft_target import MAX_TARGET_MS, POLICY_HEADER, joined, with_target
from tests.support.fakes import make_request

OURS, THEIRS = "x-headrace-ttft-target-ms", "x-llm-d-slo-ttft-ms"
REQUEST = make_request()


@pytest.mark.parametrize(
    ("headers", "target", "refuse"),
    [
        ({}, None, False),
        ({OURS: "250"}, 0.25, False),
        ({THEIRS: " 250 "}, 0.25, False),
        ({THEIRS: "nonsense", OURS: "1"}, 0.001, False),
        ({OURS: str(MAX_TARGET_MS), POLICY_HEADER: "refuse"}, 3600.0, True),
        ({OURS: "7", POLICY_HEADER: "best-effort"}, 0.007, False),
        ({POLICY_HEADER: "best-effort"}, None, False),
    ],
)
def test_a_target_is_read(headers: dict[str, str], target: float | None, refuse: bool) -> None:
    made = with_target(REQUEST, headers)
    assert (made.ttft_target, made.refuse_late) == (target, refuse)


@pytest.mark.parametrize("name", [OURS, THEIRS])
@pytest.mark.parametrize("value", ["", "0", "-1", "+5", "1.5", "1e3", "3600001", "9" * 5000, "٣", "inf", "1,2"])
def test_a_target_is_a_positive_integer_up_to_an_hour(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match="between 1 and 3600000") as refused:
        with_target(REQUEST, {name: value})
    assert refused.value.param == name


@pytest.mark.parametrize("headers", [{POLICY_HEADER: "refuse"}, {POLICY_HEADER: "Refuse", OURS: "5"}])
def test_a_policy_is_known_and_needs_a_target(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        with_target(REQUEST, headers)
    assert refused.value.param == POLICY_HEADER


def test_different_values_of_one_header_are_no_target() -> None:
    assert joined(["100", "100"]) == "100"
    for values in (["100", "junk"], ["junk", "100"], ["100", "200"]):
        with pytest.raises(InvalidRequest, match=OURS):
            with_target(REQUEST, {OURS: joined(values)})
