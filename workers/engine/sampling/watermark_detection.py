"""Detection of watermarks in token ids."""

from __future__ import annotations

import math
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from itertools import pairwise

import torch

from workers.engine.sampling.sampler import exponentials
from workers.engine.sampling.watermark import (
    CONTEXT_TOKENS,
    TokenWatermark,
    context_key,
    green_list,
    is_new_context,
)


@dataclass(frozen=True)
class Detection:
    """Evidence for a watermark.

    Attributes:
        scored: tokens that could be scored; a text of few says little.
        score: for a green list, the share of green tokens; for the Gumbel mark, the mean of -log(1 - u), which is 1
            in other texts.
        p_value: probability that a text without the mark scores as high.
    """

    scored: int
    score: float
    p_value: float


def detect(config: TokenWatermark, tokens: Tokens[int], vocab: int) -> Detection:
    """Score a text's tokens. Repeated pairs or contexts count once, as they are not independent.

    Args:
        vocab: size of the model's logits.
    """
    score = _detect_green if config.algorithm == "green_list" else _detect_gumbel
    return score(config, tokens, vocab)


def _detect_green(config: TokenWatermark, tokens: Tokens[int], vocab: int) -> Detection:
    """Test the number of green tokens against a binomial distribution, by its normal approximation."""
    pairs = set(pairwise(tokens))
    if not pairs:
        return Detection(0, 0.0, 1.0)
    green = sum(bool((green_list(config, previous, vocab) == token).any()) for previous, token in sorted(pairs))
    share = int(vocab * config.gamma) / vocab
    deviation = math.sqrt(len(pairs) * share * (1 - share))
    # half a token less, since the normal distribution stands for a discrete one
    z = (green - 0.5 - len(pairs) * share) / deviation
    return Detection(len(pairs), green / len(pairs), 0.5 * math.erfc(z / math.sqrt(2)))


def _detect_gumbel(config: TokenWatermark, tokens: Tokens[int], vocab: int) -> Detection:
    """Test the sum of -log(1 - u) of the tokens' draws u against a gamma distribution."""
    places = [end for end in range(CONTEXT_TOKENS, len(tokens)) if is_new_context(tokens, 0, end)]
    if not places:
        return Detection(0, 0.0, 1.0)
    total = 0.0
    for end in places:
        key = context_key(config.key, tokens[end - CONTEXT_TOKENS : end])
        drawn = exponentials([key], vocab, torch.device("cpu"))[0, tokens[end]]
        total -= math.log(-math.expm1(-float(drawn)))
    count, found = torch.tensor(float(len(places)), dtype=torch.float64), torch.tensor(total, dtype=torch.float64)
    return Detection(len(places), total / len(places), float(torch.special.gammaincc(count, found)))
