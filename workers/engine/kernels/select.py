"""Which kernels serve a device and dtype on this machine."""

from __future__ import annotations

from subprocess import SubprocessError

import structlog
import torch

from shared.errors import ConfigError
from workers.engine.config import EngineConfig
from workers.engine.execution.device import on
from workers.engine.kernels import Kernels
from workers.engine.kernels.build import BuildFailed, load_library
from workers.engine.kernels.cpp_kernels import CompiledKernels
from workers.engine.kernels.torch_kernels import PlainKernels
from workers.engine.quantization.formats import FORMATS
from workers.engine.quantization.interface import Quantization

_log = structlog.get_logger(__name__)


def choose_kernels(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> Kernels:
    """Fused ones on CUDA where there is Triton, compiled ones for float32 on the CPU where they can be built, plain
    torch else.

    Raises ConfigError for a quantization that the device does not serve.
    """
    quantization = FORMATS[config.quantization]
    if quantization.device_types and device.type not in quantization.device_types:
        served = " and ".join(sorted(quantization.device_types))
        message = f"quantization {config.quantization} runs on {served} only, not on {device}"
        raise ConfigError(message, param="quantization")
    if device.type == "cuda":
        return _for_cuda(device, quantization)
    if device.type != "cpu" or dtype != torch.float32 or config.cache_dir is None:
        return PlainKernels(quantization)
    try:
        return CompiledKernels(load_library(config.cache_dir / "kernels"), quantization)
    except BuildFailed as error:
        effect = f"plain torch serves: {quantization.cost_without_cpp}"
        _log.warning("kernels_unavailable", reason=str(error), effect=effect)
        return PlainKernels(quantization)


def _for_cuda(device: torch.device, quantization: Quantization) -> Kernels:
    try:
        from workers.engine.kernels.triton_kernels import FusedKernels  # noqa: PLC0415  torch for the CPU comes without Triton

        with on(device):  # Triton compiles at first use, for which it needs a C compiler
            FusedKernels().silu_mul(torch.ones(1, 2, device=device))
    except (ImportError, OSError, RuntimeError, SubprocessError) as error:
        effect = "plain torch serves: a small part of the speed"
        _log.warning("kernels_unavailable", reason=str(error), effect=effect)
        return PlainKernels(quantization)
    return FusedKernels(quantization)
