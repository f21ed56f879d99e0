"""Figures from hand-made samples."""

from __future__ import annotations

import json

import pytest

from headrace.bench.harness.report import Report, percentile
from headrace.bench.harness.timed_stream import Sample


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([5.0], 0.5, 5.0),
        ([5.0], 0.99, 5.0),
        ([1.0, 2.0], 0.5, 1.0),
        ([1.0, 2.0, 3.0], 0.5, 2.0),
        (list(map(float, range(1, 101))), 0.50, 50.0),
        (list(map(float, range(1, 101))), 0.95, 95.0),
        (list(map(float, range(1, 101))), 0.99, 99.0),
        (list(map(float, range(1, 21))), 0.99, 20.0),
    ],
)
def test_percentiles_are_of_the_nearest_rank(values, share, expected):
    """Given values, Expect the least that at least this share of all do not exceed."""
    assert percentile(values, share) == expected


def samples() -> list[Sample]:
    """Due at 10 s: one sent in time, one that its client could send only late, one that failed."""
    return [
        Sample(scheduled=10.0, arrivals=[10.2, 10.3, 10.7], ended=10.8, output_tokens=4),
        Sample(scheduled=10.0, arrivals=[11.0, 11.1], ended=11.2, output_tokens=2),
        Sample(scheduled=10.0, arrivals=[10.001], ended=10.002, output_tokens=90, error="connection cut"),
    ]


def test_figures_count_from_when_a_request_was_due():
    """Given samples, Expect times from their schedule, gaps within streams only, and exact counts."""
    report = Report.from_samples(samples(), seconds=2.0)

    assert (report.ttft.p50, report.ttft.p99) == pytest.approx((0.2, 1.0))
    assert (report.inter_token.p50, report.inter_token.p99) == pytest.approx((0.1, 0.4))
    assert (report.end_to_end.p50, report.end_to_end.p99) == pytest.approx((0.8, 1.2))
    assert (report.output_tokens, report.output_tokens_per_second, report.requests_per_second) == (6, 3.0, 1.0)


def test_a_failed_request_is_an_error_and_nothing_else():
    """Given a failed request that was quick and long, Expect it in the errors, and in no figure."""
    assert Report.from_samples(samples(), 2.0).errors == {"connection cut": 1}
    assert Report.from_samples(samples(), 2.0).requests == 3


def test_an_answer_without_text_has_no_time_to_a_first_token():
    """Given an answer whose tokens show nothing, Expect it counted, and no time made up."""
    report = Report.from_samples([Sample(scheduled=1.0, ended=2.0, output_tokens=1)], 1.0)

    assert (report.output_tokens, report.as_dict()["ttft"]) == (1, {"p50": None, "p95": None, "p99": None})


@pytest.mark.parametrize("given", [[], samples()])
def test_json_has_one_shape_whatever_was_measured(given):
    """Given something or nothing measured, Expect the same fields, in JSON that every reader takes."""

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    found = json.loads(json.dumps(Report.from_samples(given, 2.0).as_dict()), parse_constant=refuse)

    assert set(found) == {
        "requests", "errors", "seconds", "output_tokens", "events", "output_tokens_per_second",
        "requests_per_second", "ttft", "inter_token", "end_to_end", "interrupted",
    }  # fmt: skip
    assert all(set(found[name]) == {"p50", "p95", "p99"} for name in ("ttft", "inter_token", "end_to_end"))
