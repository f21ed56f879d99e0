"""Metrics of the machine under Triton's names: its CPUs, memory and GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.registry import Collector

from shared.metrics.gpu import GpuReading, Gpus

STAT, MEMORY = Path("/proc/stat"), Path("/proc/meminfo")
CPU = {
    "nv_cpu_utilization": "CPU utilization rate [0.0 - 1.0]",
    "nv_cpu_memory_total_bytes": "CPU total memory (RAM), in bytes",
    "nv_cpu_memory_used_bytes": "CPU used memory (RAM), in bytes",
}
GPU = {
    "nv_gpu_utilization": "GPU utilization rate [0.0 - 1.0)",
    "nv_gpu_memory_total_bytes": "GPU total memory, in bytes",
    "nv_gpu_memory_used_bytes": "GPU used memory, in bytes",
    "nv_gpu_power_usage": "GPU power usage in watts",
    "nv_gpu_power_limit": "GPU power management limit in watts",
    "nv_energy_consumption": "GPU energy consumption in joules since the worker started",
}


class MachineCollector(Collector):
    """Reads the levels when the metrics are asked for. The load of the CPUs is that since the last look."""

    def __init__(self) -> None:
        self._gpus = Gpus()
        self._energy = {gpu.index: gpu.energy for gpu in self._gpus.read()}
        self._times = _cpu_times()

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that the registry does not collect when it is built."""
        return []

    def collect(self) -> Iterator[Metric]:
        levels = {"nv_cpu_utilization": self._utilization(), **_memory()}
        for name, text in CPU.items():
            metric = Metric(name, text, "gauge")
            if name in levels:
                metric.add_sample(name, {}, levels[name])
            yield metric
        readings = [(gpu.uuid, self._levels(gpu)) for gpu in self._gpus.read()]
        for name, text in GPU.items():
            metric = Metric(name, text, "gauge")
            for uuid, of_gpu in readings:
                if (value := of_gpu[name]) is not None:
                    metric.add_sample(name, {"gpu_uuid": uuid}, value)
            yield metric

    def _levels(self, gpu: GpuReading) -> dict[str, float | None]:
        start = self._energy.get(gpu.index)
        return {
            "nv_gpu_utilization": gpu.utilization,
            "nv_gpu_memory_total_bytes": gpu.memory,
            "nv_gpu_memory_used_bytes": gpu.memory_used,
            "nv_gpu_power_usage": gpu.power,
            "nv_gpu_power_limit": gpu.power_limit,
            "nv_energy_consumption": None if gpu.energy is None or start is None else gpu.energy - start,
        }

    def _utilization(self) -> float:
        before, self._times = self._times, _cpu_times()
        idle, total = (now - then for now, then in zip(self._times, before, strict=True))
        return min(1.0, max(0.0, 1 - idle / total)) if total > 0 else 0.0


def _cpu_times() -> tuple[int, int]:
    """Return the time that all CPUs were idle, and their time in total, in ticks; zeros without /proc."""
    if not STAT.exists():
        return 0, 0
    user, nice, system, idle, iowait, *rest = map(int, STAT.read_text().split("\n", 1)[0].split()[1:9])
    return idle + iowait, user + nice + system + idle + iowait + sum(rest)


def _memory() -> dict[str, float]:
    if not MEMORY.exists():
        return {}
    found = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines())
    total, available = (int(found[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return {"nv_cpu_memory_total_bytes": total, "nv_cpu_memory_used_bytes": total - available}
