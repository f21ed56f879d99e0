"""Readings of GPUs, from a library that a test provides."""

from __future__ import annotations

import sys

import pytest
from prometheus_client import CollectorRegistry

from shared.metrics.gpu import GpuMetrics, Gpus
from shared.metrics.meter import Meter
from tests.support.fake_nvml import FakeNvml


def test_levels_of_each_gpu_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(gpus=2))
    registry = CollectorRegistry()
    GpuMetrics(Meter(registry))
    for gpu in ("0", "1"):
        assert registry.get_sample_value("headrace_gpu_memory_bytes", {"gpu": gpu}) == 80 * 2**30
        assert registry.get_sample_value("headrace_gpu_memory_used_bytes", {"gpu": gpu}) == 20 * 2**30
        assert registry.get_sample_value("headrace_gpu_utilization_ratio", {"gpu": gpu}) == 0.75


def test_what_a_gpu_does_not_support_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(gpus=1, unsupported={"nvmlDeviceGetPowerUsage"}))
    [reading] = Gpus().read()
    assert (reading.power, reading.power_limit, reading.energy) == (None, 700.0, 5000.0)


@pytest.mark.parametrize("library", [None, FakeNvml(gpus=1, unsupported={"nvmlInit"})], ids=["absent", "no driver"])
def test_without_the_library_or_the_driver_there_are_none(
    monkeypatch: pytest.MonkeyPatch, library: FakeNvml | None
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert list(Gpus().read()) == []
