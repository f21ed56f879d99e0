"""Operations on whole rows of logits, with interchangeable implementations: draws of tokens, and log-probabilities.

torch_rows.py is the reference, for every device; cpp_rows.py serves float32 on the CPU.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from shared.protocol import SamplingParams
from workers.engine.sequence import Sequence

MIN_TEMPERATURE = 1e-5  # lower temperatures would overflow, and are greedy
_MASK_64 = 2**64 - 1


class Rows(Protocol):
    """Operations on rows [R, vocab] float32. A row's result does not depend on the others."""

    def draw(self, logits: Tensor, sequences: list[Sequence]) -> list[int | None]:
        """Draw the next token of each sequence from its row; None where the highest logit is not finite.

        Penalties and masks have been applied.
        """

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Return the logarithm of each row's softmax."""


def is_greedy(params: SamplingParams) -> bool:
    """Return True if the most likely token is taken, without a draw."""
    return params.temperature < MIN_TEMPERATURE or params.top_p == 0


def noise_key(seed: int, choice: int, position: int) -> tuple[int, int]:
    """Hash the three numbers to two 32-bit words with the finalizer of SplitMix64.

    https://doi.org/10.1145/2660193.2660195
    """
    state = 0
    for part in (seed, choice, position):
        state = (state ^ part) + 0x9E3779B97F4A7C15 & _MASK_64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK_64
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK_64
        state ^= state >> 31
    return state >> 32, state & 0xFFFFFFFF


def key_of(sequence: Sequence) -> tuple[int, int]:
    """Return the key of a sequence's next draw."""
    draw = noise_key if sequence.watermark is None else sequence.watermark.noise_key
    return draw(sequence.params.seed, sequence.choice, sequence.num_output_tokens)
