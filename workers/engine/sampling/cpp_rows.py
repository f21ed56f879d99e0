"""Operations on rows of logits in C++, for float32 on the CPU; see `Rows`. Their bits are the same on every CPU."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor

from workers.engine.sampling.rows import is_greedy, key_of
from workers.engine.sequence import Sequence

# `Draw` in kernels/sampling.cpp
_ROW = np.dtype(
    [
        *((name, np.float64) for name in ("top_p", "typical_p")),
        ("top_k", np.int64),
        *((name, np.uint64) for name in ("seed", "choice", "position")),
        *((name, np.float32) for name in ("temperature", "min_p")),
        ("keyed", np.int64),
    ]
)
_MASK_64 = 2**64 - 1


class CppRows:
    """Rows in C++; see `Rows`. What a batch asks for is converted once, until other sequences come.

    Args:
        library: the result of `build.load_library`, with the signatures of `CppKernels`.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._sequences: list[Sequence] = []
        self._draws = np.zeros(0, _ROW)
        self._tokens = np.zeros(0, np.int64)
        self._sampled = False
        self._marked: list[int] = []

    def draw(self, logits: Tensor, sequences: list[Sequence]) -> list[int | None]:
        if sequences != self._sequences:
            self._prepare(sequences)
        if self._sampled:
            self._draws["position"] = [len(s.tokens) - s.num_prompt_tokens for s in sequences]
            for row in self._marked:
                first, second = key_of(sequences[row])
                self._draws["seed"][row] = first << 32 | second
        rows, size = logits.shape
        pointers = (logits.contiguous().data_ptr(), self._draws.ctypes.data, self._tokens.ctypes.data)
        self._library.hr_draw(*pointers, rows, size)
        return [None if token < 0 else token for token in self._tokens.tolist()]

    def _prepare(self, sequences: list[Sequence]) -> None:
        self._sequences = list(sequences)
        self._draws = np.array([_row_of(sequence) for sequence in sequences], _ROW)
        self._tokens = np.zeros(len(sequences), np.int64)
        self._sampled = not all(is_greedy(sequence.params) for sequence in sequences)
        self._marked = [row for row, sequence in enumerate(sequences) if sequence.watermark is not None]

    def log_softmax(self, logits: Tensor) -> Tensor:
        logits = logits.contiguous()
        found = torch.empty_like(logits)
        self._library.hr_log_softmax(logits.data_ptr(), found.data_ptr(), *logits.shape)
        return found


def _row_of(sequence: Sequence) -> tuple[float, ...]:
    """Return the fields of `_ROW`, without the position."""
    params, keyed = sequence.params, int(sequence.watermark is not None)
    temperature = 0.0 if is_greedy(params) else params.temperature
    key = (params.seed & _MASK_64, sequence.choice, 0)
    return (params.top_p, params.typical_p, params.top_k, *key, temperature, params.min_p, keyed)
