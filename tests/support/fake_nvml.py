"""Stand-in for the module pynvml, with GPUs that report fixed numbers."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace


class NVMLError(Exception):
    """Error of the library."""


class FakeNvml(ModuleType):
    """The functions that Headrace calls. Those in `unsupported` raise NVMLError."""

    NVMLError = NVMLError

    def __init__(self, gpus: int, unsupported: set[str] | None = None) -> None:
        super().__init__("pynvml")
        answers: dict[str, object] = {
            "nvmlInit": None,
            "nvmlDeviceGetCount": gpus,
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 * 2**30, used=20 * 2**30),
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=75, memory=10),
            "nvmlDeviceGetUUID": "GPU-1",
            "nvmlDeviceGetPowerUsage": 350_000,
            "nvmlDeviceGetPowerManagementLimit": 700_000,
            "nvmlDeviceGetTotalEnergyConsumption": 5_000_000,
        }
        for name, answer in answers.items():
            setattr(self, name, self._function(name, answer, fails=name in (unsupported or ())))

    def _function(self, name: str, answer: object, *, fails: bool) -> object:
        def call(*_: object) -> object:
            if fails:
                raise NVMLError(name)
            return answer

        return call
