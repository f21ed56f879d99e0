"""Statistics of hand-made samples."""

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
def test_percentiles_are_nearest_rank(values, share, expected):
    """Given values, the percentile is the least value that at least this share of all do not exceed."""
    assert percentile(values, share) == expected


def samples() -> list[Sample]:
    """Samples due at 10 s: one sent in time, one sent late by a slow client, one failed."""
    return [
        Sample(scheduled=10.0, arrivals=[10.2, 10.3, 10.7], ended=10.8, output_tokens=4),
        Sample(scheduled=10.0, arrivals=[11.0, 11.1], ended=11.2, output_tokens=2),
        Sample(scheduled=10.0, arrivals=[10.001], ended=10.002, output_tokens=90, error="connection cut"),
    ]


def test_latency_counts_from_the_schedule():
    """Given samples, times count from their schedule, gaps only within streams, and counts are exact."""
    report = Report.from_samples(samples(), seconds=2.0)

    assert (report.ttft.p50, report.ttft.p99) == pytest.approx((0.2, 1.0))
    assert (report.inter_token.p50, report.inter_token.p99) == pytest.approx((0.1, 0.4))
    assert (report.end_to_end.p50, report.end_to_end.p99) == pytest.approx((0.8, 1.2))
    assert (report.output_tokens, report.output_tokens_per_second, report.requests_per_second) == (6, 3.0, 1.0)


def test_a_failed_request_counts_only_as_an_error():
    """Given a failed request that was quick and long, it is in the errors and in no figure."""
    assert Report.from_samples(samples(), 2.0).errors == {"connection cut": 1}
    assert Report.from_samples(samples(), 2.0).requests == 3


def test_an_answer_without_text_has_no_ttft():
    """Given an answer whose tokens have no text, it is counted, without a time to first token."""
    report = Report.from_samples([Sample(scheduled=1.0, ended=2.0, output_tokens=1)], 1.0)

    assert (report.output_tokens, report.as_dict()["ttft"]) == (1, {"p50": None, "p95": None, "p99": None})


@pytest.mark.parametrize("given", [[], samples()])
def test_json_always_has_the_same_fields(given):
    """Given samples or none, the fields are the same, and the JSON is strict."""

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not strict JSON")

    found = json.loads(json.dumps(Report.from_samples(given, 2.0).as_dict()), parse_constant=refuse)

    assert set(found) == {
        "requests", "errors", "seconds", "output_tokens", "events", "output_tokens_per_second",
        "requests_per_second", "ttft", "inter_token", "end_to_end", "interrupted",
    }  # fmt: skip
    assert all(set(found[name]) == {"p50", "p95", "p99"} for name in ("ttft", "inter_token", "end_to_end"))
