"""Memory of a request in Redis, as in docs/redis.md and `headrace doctor`."""

from __future__ import annotations

import pytest

from headrace.bench.engine.memory import measure_memory
from headrace.doctor.redis_sizing import EXAMPLE_ANSWER_TOKENS, EXAMPLE_PROMPT_BYTES, MEASURED, Linear


def test_a_line_passes_through_its_points() -> None:
    line = Linear.through([(0, 100.0), (10, 120.0), (30, 160.0)])
    assert (line.base, line.each, line(20)) == pytest.approx((100, 2, 140))


@pytest.mark.slow
def test_the_formulas_match_the_measurement() -> None:
    found = measure_memory(150)
    assert found.sizing.waiting(EXAMPLE_PROMPT_BYTES) == pytest.approx(
        MEASURED.waiting(EXAMPLE_PROMPT_BYTES), rel=0.2
    )
    assert found.sizing.finished(EXAMPLE_ANSWER_TOKENS) == pytest.approx(
        MEASURED.finished(EXAMPLE_ANSWER_TOKENS), rel=0.2
    )
    assert 0 < found.batched < found.sizing.finished(EXAMPLE_ANSWER_TOKENS)
