"""Rows of floats as integers with a scale for each row."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_MAGNITUDE = 1e-30  # rows with smaller values become 0
MAX_ACTIVATION = 127 * 2**8 + 127  # two bytes with a sign


def quantize_rows(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Round [T, n] to integers of at most `levels`. Return them and the scale of each row.

    The scale is 0 for a row of zeros, and NaN for a row with a value that is not finite.
    """
    largest = x.abs().amax(-1)
    largest = torch.where(x.isfinite().all(-1), largest, torch.nan)
    is_scaled = largest >= MIN_MAGNITUDE
    steps = torch.full_like(largest, levels)
    integers = (x * torch.where(is_scaled, steps / largest, 0)[:, None]).round()
    scales = torch.where(is_scaled | largest.isnan(), largest / steps, 0)
    return torch.where(is_scaled[:, None], integers, 0), scales
