"""Watermarks: a choice of tokens that whoever has the key can tell from text of another origin.

Both kinds depend on the key and the tokens so far alone, so that an answer that another worker continues has the
same mark. For a text, `watermark_detection` says how likely it would score as high without a mark.

References: Kirchenbauer et al., https://arxiv.org/abs/2301.10226, with the generator of TGI,
`server/text_generation_server/utils/watermark.py`; Aaronson's Gumbel mark,
https://scottaaronson.blog/?p=6823.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from shared.errors import ConfigError
from shared.settings import Settings, WatermarkAlgorithm

CONTEXT_TOKENS = 4  # that seed a draw of the Gumbel mark
TGI_KEY = 15_485_863
MAX_KEY = 2**32 - 1  # its product with a token id is a seed of torch
KEPT_LISTS = 256  # green lists in memory


@dataclass(frozen=True)
class TokenWatermark:
    """Watermark of an installation; whoever knows its key can detect the mark, and imitate it.

    Attributes:
        key: secret number from 1 to MAX_KEY.
        gamma: share of the vocabulary in a green list.
        delta: addition to the logits of green tokens.
    """

    algorithm: WatermarkAlgorithm = "green_list"
    key: int = TGI_KEY
    gamma: float = 0.5
    delta: float = 2.0

    @classmethod
    def from_settings(cls, settings: Settings) -> TokenWatermark:
        """Raises ConfigError for a key that is no number in range, without showing it."""
        key = settings.watermark_key.get_secret_value()
        if not (key.isascii() and key.isdecimal() and len(key) <= len(str(MAX_KEY)) and 0 < int(key) <= MAX_KEY):
            raise ConfigError(f"watermark_key must be a number from 1 to {MAX_KEY}", param="watermark_key")
        return cls(settings.watermark_algorithm, int(key), settings.watermark_gamma, settings.watermark_delta)

    @property
    def identity(self) -> str:
        """What an answer depends on, without the key, which a short hash of it would tell."""
        return f"{self.algorithm} {self.gamma} {self.delta}"

    def bias(self, row: Tensor, tokens: Tokens[int]) -> None:
        """Add `delta` to the logits of the green tokens, in place, for a green list."""
        if self.algorithm == "green_list":
            row[green_list(self, tokens[-1], len(row)).to(row.device)] += self.delta

    def noise_key(self, tokens: Tokens[int], num_prompt_tokens: int) -> tuple[int, int] | None:
        """Return the key of the Gumbel mark's draw; None where the draw is an ordinary one.

        A mark needs a whole context in the answer, and one that is new in it: drawn from one context twice, an
        answer would repeat itself.
        """
        if self.algorithm != "gumbel" or not is_new_context(tokens, num_prompt_tokens, len(tokens)):
            return None
        return context_key(self.key, tokens[-CONTEXT_TOKENS:])


@lru_cache(KEPT_LISTS)
def green_list(config: TokenWatermark, previous: int, vocab: int) -> Tensor:
    """Return the ids of the tokens that are green after `previous`, as TGI draws them on a CPU."""
    generator = torch.Generator().manual_seed(config.key * previous)
    return torch.randperm(vocab, generator=generator)[: int(vocab * config.gamma)]


def is_new_context(tokens: Tokens[int], start: int, end: int) -> bool:
    """Return True if the context before `end` lies in tokens[start:end], and nowhere else in them."""
    first = end - CONTEXT_TOKENS
    if first < start:
        return False
    context, earlier = tokens[first:end], _places(tokens, tokens[first], start, first)
    return all(tokens[at : at + CONTEXT_TOKENS] != context for at in earlier)


def _places(tokens: Tokens[int], token: int, start: int, end: int) -> list[int]:
    places: list[int] = []
    at = start
    while True:
        try:
            at = tokens.index(token, at, end)
        except ValueError:
            return places
        places.append(at)
        at += 1


def context_key(key: int, context: Tokens[int]) -> tuple[int, int]:
    """Return two words of 32 bits for `sampler.exponentials`."""
    parts = b"".join(token.to_bytes(4, "little") for token in context)
    words = hashlib.blake2b(parts, digest_size=8, key=key.to_bytes(8, "little")).digest()
    return int.from_bytes(words[:4], "little"), int.from_bytes(words[4:], "little")
