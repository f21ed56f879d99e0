"""Metrics of the machine under Triton's names."""

from __future__ import annotations

import sys

import pytest
from prometheus_client import CollectorRegistry

from tests.support.fake_nvml import FakeNvml
from workers.predictors.machine import MachineCollector


def test_cpus_and_gpus_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(gpus=1)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    registry = CollectorRegistry()
    registry.register(MachineCollector())
    monkeypatch.setattr(nvml, "nvmlDeviceGetTotalEnergyConsumption", lambda _: 5_002_500)
    shown = {sample.name: sample for family in registry.collect() for sample in family.samples}
    assert {name: shown[name].value for name in shown if name.startswith(("nv_gpu", "nv_energy"))} == {
        "nv_gpu_utilization": 0.75,
        "nv_gpu_memory_total_bytes": 80 * 2**30,
        "nv_gpu_memory_used_bytes": 20 * 2**30,
        "nv_gpu_power_usage": 350.0,
        "nv_gpu_power_limit": 700.0,
        "nv_energy_consumption": 2.5,
    }
    assert shown["nv_gpu_utilization"].labels == {"gpu_uuid": "GPU-1"}
    assert 0 <= shown["nv_cpu_utilization"].value <= 1
    assert 0 < shown["nv_cpu_memory_used_bytes"].value < shown["nv_cpu_memory_total_bytes"].value


def test_without_a_gpu_only_the_cpus_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    registry = CollectorRegistry()
    registry.register(MachineCollector())
    assert {sample.name for family in registry.collect() for sample in family.samples} == {
        "nv_cpu_utilization",
        "nv_cpu_memory_total_bytes",
        "nv_cpu_memory_used_bytes",
    }
