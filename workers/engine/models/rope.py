"""Table of cosines and sines for rotary position embedding (https://arxiv.org/abs/2104.09864).

Scalings: linear (position interpolation), llama3 (by wavelength, the Llama 3.1 release), yarn
(https://arxiv.org/abs/2309.00071), and factors (one divisor for each frequency, as in GGUF files). Dynamic scaling
changes nothing up to the checkpoint's own length, which is the longest that the engine allows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from workers.engine.kernels import Kernels
from workers.engine.models.llama_config import RopeConfig


def rope_table(rope: RopeConfig, head_dim: int, length: int, kernels: Kernels) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, each [length, head_dim / 2] float32, for each position and frequency."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    inv_freq = 1.0 / torch.tensor(
        [rope.theta**each for each in exponents.tolist()]
    )  # torch's powers depend on the CPU
    scale = 1.0
    if rope.kind == "linear":
        inv_freq = inv_freq / rope.scaling["factor"]
    elif rope.kind == "factors":
        inv_freq = inv_freq / torch.tensor(rope.scaling["factors"])
    elif rope.kind == "llama3":
        inv_freq = _llama3(inv_freq, rope.scaling)
    elif rope.kind == "yarn":
        inv_freq = _yarn(inv_freq, rope, head_dim)
        scale = _yarn_scale(rope.scaling)
    cosines, sines = kernels.rotary_table(inv_freq, length)
    return cosines * scale, sines * scale


def _llama3(inv_freq: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Divide low frequencies by the factor, keep high ones, and blend those between."""
    factor, low, high = (scaling[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = scaling["original_max_position_embeddings"] * inv_freq / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    blended: Tensor = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    return blended


def _yarn(inv_freq: Tensor, rope: RopeConfig, head_dim: int) -> Tensor:
    """Blend interpolated and plain frequencies by the number of turns of a dimension within the original length."""
    scaling = rope.scaling
    length = scaling["original_max_position_embeddings"]

    def dimension(turns: float) -> float:
        return head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = dimension(scaling.get("beta_fast") or 32)
    high = dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # avoids a division by zero, as in the reference implementation
    ramp = ((torch.arange(head_dim // 2).float() - low) / (high - low)).clamp(0, 1)
    blended: Tensor = inv_freq / scaling["factor"] * ramp + inv_freq * (1 - ramp)
    return blended


def _yarn_scale(scaling: dict[str, Any]) -> float:
    """Return the factor on cosines and sines with which yarn sets the temperature of attention."""
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return mscale(scaling["mscale"]) / mscale(scaling["mscale_all_dim"])
    return mscale(1.0)
