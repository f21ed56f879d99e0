"""Interface of watermarks."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from shared.protocol import SamplingParams


class Mark(Protocol):
    """Mark of an installation on the tokens of answers. It has no state."""

    @property
    def identity(self) -> str:
        """Return what an answer depends on, without the key, which even a hash of it would give away."""

    def check(self, params: SamplingParams) -> None:
        """Raise InvalidRequest for a request whose answer cannot be marked."""

    def bias(self, row: Tensor, tokens: list[int]) -> None:
        """Raise the logits of the tokens that the mark prefers after `tokens`, in place.

        Args:
            row: [vocab] float32; values of minus infinity stay.
            tokens: prompt and output.
        """

    def noise_key(self, seed: int, choice: int, position: int) -> tuple[int, int]:
        """Return two words of 32 bits for the draw of the token at this position of the output."""
