"""Readings of the GPUs of this machine through NVIDIA's management library, where both are present."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from shared.metrics import common as declared
from shared.metrics.meter import Meter

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class GpuReading:
    """Levels of one GPU; None for what it does not report.

    Attributes:
        index, uuid: of the GPU, for labels.
        memory, memory_used: bytes.
        utilization: 0 to 1.
        power, power_limit: watts.
        energy: joules since the driver was loaded.
    """

    index: int
    uuid: str
    memory: float | None = None
    memory_used: float | None = None
    utilization: float | None = None
    power: float | None = None
    power_limit: float | None = None
    energy: float | None = None


class Gpus:
    """The GPUs of this machine; none without a GPU, its driver, or nvidia-ml-py."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        try:
            import pynvml  # noqa: PLC0415  optional
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        except pynvml.NVMLError as error:
            log.info("no_gpu_metrics", reason=str(error))
        self._nvml = pynvml

    def read(self) -> Iterator[GpuReading]:
        """Yield a reading of each GPU."""
        for index, handle in enumerate(self._handles):
            memory = self._get("nvmlDeviceGetMemoryInfo", handle)
            rates = self._get("nvmlDeviceGetUtilizationRates", handle)
            yield GpuReading(
                index,
                str(self._get("nvmlDeviceGetUUID", handle) or ""),
                memory=None if memory is None else memory.total,
                memory_used=None if memory is None else memory.used,
                utilization=None if rates is None else rates.gpu / 100,
                power=_thousandth(self._get("nvmlDeviceGetPowerUsage", handle)),
                power_limit=_thousandth(self._get("nvmlDeviceGetPowerManagementLimit", handle)),
                energy=_thousandth(self._get("nvmlDeviceGetTotalEnergyConsumption", handle)),
            )

    def _get(self, function: str, handle: Any) -> Any:
        """Return what a function of the library returns; None if the GPU does not support it."""
        ask: Callable[[Any], Any] = getattr(self._nvml, function)
        with suppress(self._nvml.NVMLError):
            return ask(handle)
        return None


class GpuMetrics:
    """Headrace's metrics of the GPUs, read when the metrics are asked for."""

    def __init__(self, meter: Meter) -> None:
        self._gpus = Gpus()
        self._memory = meter.values(declared.GPU_MEMORY)
        self._memory_used = meter.values(declared.GPU_MEMORY_USED)
        self._utilization = meter.values(declared.GPU_UTILIZATION)
        meter.before.append(self._read)

    def _read(self) -> None:
        for gpu in self._gpus.read():
            for family, value in (
                (self._memory, gpu.memory),
                (self._memory_used, gpu.memory_used),
                (self._utilization, gpu.utilization),
            ):
                if value is not None:
                    family.labels(str(gpu.index)).set(value)


def _thousandth(value: float | None) -> float | None:
    return None if value is None else value / 1000
