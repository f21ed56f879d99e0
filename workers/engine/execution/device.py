"""Selection of the GPU that a thread launches kernels on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Return a context manager that makes `device` current; a thread's default is the first GPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
