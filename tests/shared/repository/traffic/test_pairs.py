"""Tests of the summary of pairs."""

from __future__ import annotations

from shared.protocol import RequestState
from shared.repository.traffic.pairs import Agreement, Latency, Pair, Side, summarize


def side(model: str, run_s: float | None = None, state: RequestState = RequestState.COMPLETED) -> Side:
    return Side(model=model, state=state, run_s=run_s)


def test_summary_of_no_pairs_is_empty() -> None:
    found = summarize("m", [])
    assert (found.pairs, found.exact, found.max_difference) == (0, None, None)
    assert found.original_latency == found.shadow_latency == Latency(None, None)


def test_summary_has_shares_and_percentiles() -> None:
    pairs = [
        Pair(
            at=float(i),
            original=side("m", i / 100),
            shadow=side("n", 2 * i / 100),
            agreement=Agreement(i % 2 == 0, i / 10, i > 25),
        )
        for i in range(1, 101)
    ]
    failed = Pair(at=0.0, original=side("m", 9), shadow=side("n", 99, RequestState.FAILED))
    found = summarize("m", [*pairs, failed])
    assert (found.pairs, found.compared, found.original_failed, found.shadow_failed) == (101, 100, 0, 1)
    assert (found.exact, found.labels_agree, found.max_difference) == (0.5, 0.75, 10.0)
    assert found.original_latency == Latency(0.51, 0.96)
    assert found.shadow_latency == Latency(1.01, 1.9)
