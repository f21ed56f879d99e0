"""Selection of the kernels for a device and dtype on this machine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from subprocess import SubprocessError

import structlog
import torch

from shared.errors import ConfigError
from workers.engine.config import EngineConfig
from workers.engine.execution.device import on_device
from workers.engine.kernels import Kernels
from workers.engine.kernels.build import BuildFailed, load_library
from workers.engine.kernels.cpp_kernels import CppKernels
from workers.engine.kernels.torch_kernels import TorchKernels
from workers.engine.quantization.formats import FORMATS
from workers.engine.quantization.interface import Quantization

_log = structlog.get_logger(__name__)


def choose_kernels(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> Kernels:
    """Return the kernels for a device: Triton on CUDA, C++ for float32 on the CPU, otherwise plain torch.

    Plain torch also replaces Triton where it is missing, and C++ where it cannot be built.
    """
    quantization = FORMATS[config.quantization]
    if device.type == "cuda":
        return _for_cuda(device, quantization)
    folder = _cpp_folder(config, device, dtype)
    if folder is None:
        return TorchKernels(quantization)
    try:
        return CppKernels(load_library(folder), quantization)
    except BuildFailed as error:
        effect = f"plain torch is used: {quantization.cost_without_cpp}"
        _log.warning("kernels_unavailable", reason=str(error), effect=effect)
        return TorchKernels(quantization)


def build_ahead(config: EngineConfig) -> None:
    """Build the C++ kernels into the cache if `choose_kernels` will need them, which waits for a running build.

    Errors are left to `choose_kernels`.
    """
    with suppress(BuildFailed, ConfigError):
        device = config.torch_device()
        folder = _cpp_folder(config, device, config.torch_dtype(device, torch.float32))
        if folder is not None:
            load_library(folder)


def _cpp_folder(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> Path | None:
    """Return the folder of the compiled C++ kernels; None where they are not used."""
    if device.type != "cpu" or dtype != torch.float32 or config.cache_dir is None:
        return None
    return config.cache_dir / "kernels"


def _for_cuda(device: torch.device, quantization: Quantization) -> Kernels:
    try:
        from workers.engine.kernels.triton_kernels import TritonKernels  # noqa: PLC0415  CPU builds of torch come without Triton

        with on_device(device):  # Triton compiles at first use and needs a C compiler
            TritonKernels().activate(torch.ones(1, 2, device=device))
    except (ImportError, OSError, RuntimeError, SubprocessError) as error:
        effect = "plain torch is used: a small part of the speed"
        _log.warning("kernels_unavailable", reason=str(error), effect=effect)
        return TorchKernels(quantization)
    return TritonKernels(quantization)
