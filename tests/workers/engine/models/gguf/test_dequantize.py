"""Blocks of every type against the reference in the package `gguf`."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from shared.models.gguf_header import BLOCK_TYPES
from workers.engine.models.gguf.dequantize import dequantize

HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2)}
HALVES |= {"Q5_K": (0, 2)}


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=[block.name for block in BLOCK_TYPES.values()])
def test_values_equal_the_reference(kind: int) -> None:
    """Given random blocks with ordinary scales."""
    block, rows = BLOCK_TYPES[kind], 6
    rng = np.random.default_rng(kind)
    if block.values == 1:
        values = rng.normal(size=(rows, 64)).astype(np.float32)
        data = gguf.quants.quantize(values, gguf.GGMLQuantizationType(kind)).view(np.uint8)
    else:
        data = rng.integers(0, 256, (rows * 4, block.size), dtype=np.uint8)
        for at in HALVES.get(block.name, (0,)):
            data[:, at : at + 2] = rng.normal(size=(len(data), 1)).astype(np.float16).view(np.uint8)
        data = data.reshape(rows, -1)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind))
    found = dequantize(torch.from_numpy(data.copy()).view(-1), kind, expected.shape)
    torch.testing.assert_close(found.float(), torch.from_numpy(expected), rtol=1e-6, atol=1e-6)
