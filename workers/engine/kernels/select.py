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

_log = structlog.get_logger(__name__)


def choose_kernels(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> Kernels:
    """Fused ones on CUDA where there is Triton, compiled ones for float32 on the CPU where they can be built, plain
    torch else.

    Raises ConfigError for int8 elsewhere than on the CPU.
    """
    int8 = config.quantization == "int8"
    if int8 and device.type != "cpu":
        raise ConfigError(f"quantization int8 is for the CPU, not for {device}", param="quantization")
    if device.type == "cuda":
        return _for_cuda(device)
    if device.type != "cpu" or dtype != torch.float32 or config.cache_dir is None:
        return PlainKernels(int8=int8)
    try:
        return CompiledKernels(load_library(config.cache_dir / "kernels"), int8=int8)
    except BuildFailed as error:
        effect = "int8 without its speed" if int8 else "about half the speed"
        _log.warning("kernels_unavailable", reason=str(error), effect=f"plain torch serves: {effect}")
        return PlainKernels(int8=int8)


def _for_cuda(device: torch.device) -> Kernels:
    try:
        from workers.engine.kernels.triton_kernels import FusedKernels  # noqa: PLC0415  torch for the CPU comes without Triton

        with on(device):  # Triton compiles at first use, for which it needs a C compiler
            FusedKernels().silu_mul(torch.ones(1, 2, device=device))
    except (ImportError, OSError, RuntimeError, SubprocessError) as error:
        effect = "plain torch serves: a small part of the speed"
        _log.warning("kernels_unavailable", reason=str(error), effect=effect)
        return PlainKernels()
    return FusedKernels()
