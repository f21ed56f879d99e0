"""Which GPU a thread's launches go to."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def on(device: torch.device) -> AbstractContextManager[object]:
    """To `device` within; else a thread's go to the first."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
