"""Watermarks of answers: a green list of tokens, or random numbers that come from a key.

Both depend on the tokens, the seed and the position alone, so that an answer that another worker continues has the
same mark. References: Kirchenbauer et al., https://arxiv.org/abs/2301.10226, with the generator of TGI,
`server/text_generation_server/utils/watermark.py`; Kuditipudi et al., https://arxiv.org/abs/2307.15593.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from shared.errors import ConfigError, InvalidRequest
from shared.protocol import SamplingParams
from shared.settings import Settings
from workers.engine.sampling.rows import is_greedy, noise_key

TGI_KEY = 15_485_863
MAX_KEY = 2**32 - 1  # torch's generator on a CPU uses this much of a seed
KEPT_LISTS = 256  # green lists in memory, of one byte for each token of the vocabulary
RING = 2**16  # draws of a key before they repeat; a power of 2
STRIDE = 40_503  # between the choices of a request; odd, so that they all begin at different places


@dataclass(frozen=True)
class GreenListMark:
    """TGI's mark: after each token, a share of the vocabulary is green, and its logits are raised.

    Attributes:
        key: from 1 to MAX_KEY; who has it can detect the mark, and imitate it.
        gamma: share of the vocabulary that is green.
        delta: addition to the logits of green tokens.
    """

    key: int = TGI_KEY
    gamma: float = 0.5
    delta: float = 2.0

    @property
    def identity(self) -> str:
        return f"green_list {self.gamma} {self.delta}"

    def check(self, params: SamplingParams) -> None:
        """Accept all requests."""

    def bias(self, row: Tensor, tokens: Tokens[int]) -> None:
        row.add_(green_list(self.key, self.gamma, tokens[-1], len(row)).to(row.device), alpha=self.delta)

    def noise_key(self, seed: int, choice: int, position: int) -> tuple[int, int]:
        return noise_key(seed, choice, position)


@lru_cache(KEPT_LISTS)
def green_list(key: int, gamma: float, previous: int, vocab: int) -> Tensor:
    """Return which tokens are green after `previous`, as TGI draws them on a CPU: [vocab] bool."""
    generator = torch.Generator().manual_seed(key * previous)
    green = torch.zeros(vocab, dtype=torch.bool)
    green[torch.randperm(vocab, generator=generator)[: int(vocab * gamma)]] = True
    return green


@dataclass(frozen=True)
class GumbelMark:
    """Mark that leaves the distribution of each answer as it is: its draws come from a key instead of the seed.

    The key has a ring of draws, one for each position. The seed and the choice say where on the ring an answer
    begins.

    Attributes:
        key: as that of a green list.
    """

    key: int = TGI_KEY

    @property
    def identity(self) -> str:
        return "gumbel"

    def check(self, params: SamplingParams) -> None:
        if is_greedy(params) or params.top_k == 1:
            raise InvalidRequest(
                "watermark needs a temperature and a top_p above 0, and a top_k other than 1, on this server: its "
                "mark (gumbel) is in the draw of tokens",
                param="watermark",
            )

    def bias(self, row: Tensor, tokens: Tokens[int]) -> None:
        """Leave the logits as they are."""

    def noise_key(self, seed: int, choice: int, position: int) -> tuple[int, int]:
        start = noise_key(seed, 0, 0)[1] + choice * STRIDE
        return ring_key(self.key, (start + position) % RING)


def ring_key(key: int, place: int) -> tuple[int, int]:
    """Return the two words of 32 bits at a place of the key's ring; see `torch_rows.uniforms`."""
    words = hashlib.blake2b(place.to_bytes(4, "little"), digest_size=8, key=key.to_bytes(8, "little")).digest()
    return int.from_bytes(words[:4], "little"), int.from_bytes(words[4:], "little")


TokenMark = GreenListMark | GumbelMark


def make_mark(settings: Settings) -> TokenMark:
    """Return the mark of the settings. Raises ConfigError for a key out of range, without showing it."""
    text = settings.watermark_key.get_secret_value()
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_KEY)) and 0 < int(text) <= MAX_KEY):
        raise ConfigError(f"watermark_key must be an integer from 1 to {MAX_KEY}", param="watermark_key")
    if settings.watermark_algorithm == "gumbel":
        return GumbelMark(int(text))
    return GreenListMark(int(text), settings.watermark_gamma, settings.watermark_delta)
