"""Series of a process under Headrace's names and vLLM's, with a bound on their number."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from shared.metrics.declaration import Declaration, VllmName
from shared.metrics.meter import Meter
from shared.metrics.series import MAX_SERIES
from shared.settings import MetricsNames

COUNTER = Declaration(
    "counter",
    "headrace_x",
    "x",
    ("model", "class", "kind"),
    vllm=(VllmName("prompts", where={"kind": "prompt"}), VllmName("ends", keep={"kind": "reason"})),
)
HISTOGRAM = Declaration(
    "histogram", "headrace_y_seconds", "y", ("model", "class"), (1, 2), (VllmName("y_seconds", (0.5, 2)),)
)


def _lines(names: MetricsNames) -> set[str]:
    registry = CollectorRegistry()
    meter = Meter(registry, names)
    counter, histogram = meter.values(COUNTER), meter.distributions(HISTOGRAM)
    for priority in ("standard", "batch"):
        counter.labels("m", priority, "prompt").inc(3)
        counter.labels("m", priority, "completion").inc()
        histogram.labels("m", priority).observe(0.5)
        histogram.labels("m", priority).observe(1.5)
    text = generate_latest(registry).decode()
    return {line for line in text.splitlines() if line.startswith(("headrace_", "vllm:"))}


OWN = {
    'headrace_x_total{class="standard",kind="prompt",model="m"} 3.0',
    'headrace_y_seconds_bucket{class="batch",le="1.0",model="m"} 1.0',
    'headrace_y_seconds_bucket{class="batch",le="2.0",model="m"} 2.0',
    'headrace_y_seconds_bucket{class="batch",le="+Inf",model="m"} 2.0',
    'headrace_y_seconds_sum{class="batch",model="m"} 2.0',
}
VLLM = {
    'vllm:prompts_total{engine="0",model_name="m"} 6.0',
    'vllm:ends_total{engine="0",model_name="m",reason="completion"} 2.0',
    'vllm:ends_total{engine="0",model_name="m",reason="prompt"} 6.0',
    'vllm:y_seconds_bucket{engine="0",le="0.5",model_name="m"} 2.0',
    'vllm:y_seconds_bucket{engine="0",le="2.0",model_name="m"} 4.0',
    'vllm:y_seconds_bucket{engine="0",le="+Inf",model_name="m"} 4.0',
    'vllm:y_seconds_count{engine="0",model_name="m"} 4.0',
    'vllm:y_seconds_sum{engine="0",model_name="m"} 4.0',
}


@pytest.mark.parametrize("names", ["headrace", "vllm", "both"])
def test_each_choice_of_names_shows_its_series(names: MetricsNames) -> None:
    lines = _lines(names)
    assert lines >= (OWN if names != "vllm" else set()) | (VLLM if names != "headrace" else set())
    assert any(line.startswith("headrace_") for line in lines) == (names != "vllm")
    assert {line for line in lines if line.startswith("vllm:")} == (VLLM if names != "headrace" else set())


def test_series_beyond_the_bound_are_counted_together() -> None:
    registry = CollectorRegistry()
    values = Meter(registry).values(Declaration("counter", "headrace_z", "z", ("model",)))
    for number in range(MAX_SERIES + 19_000):
        values.labels(f"m{number}").inc()
    [family] = [each for each in registry.collect() if each.name == "headrace_z"]
    assert len(family.samples) == MAX_SERIES + 1
    assert registry.get_sample_value("headrace_z_total", {"model": "other"}) == 19_000


def test_a_removed_model_shows_no_series() -> None:
    registry = CollectorRegistry()
    values = Meter(registry).values(COUNTER)
    values.labels("m", "batch", "prompt").inc()
    values.labels("n", "batch", "prompt").inc()
    values.remove("m")
    [family] = [each for each in registry.collect() if each.name == "headrace_x"]
    assert [sample.labels["model"] for sample in family.samples] == ["n"]
