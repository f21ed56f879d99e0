"""Detection of watermarks in token ids: the probability that other tokens score as high."""

from __future__ import annotations

import math
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from workers.engine.sampling.torch_rows import key_words, uniforms
from workers.engine.sampling.watermark import RING, GreenListMark, GumbelMark, TokenMark, green_list, ring_key

SHORTEST_PART = 32  # tokens; parts of a text down to this size are scored alone, too
MAX_GUMBEL_TOKENS = 2**14  # of a text that are scored, since each is compared with all places of the ring


@dataclass(frozen=True)
class Detection:
    """Evidence for a watermark.

    Attributes:
        scored: number of the tokens with the strongest evidence; a few tell little.
        score: for a green list, the share of green tokens; for the Gumbel mark, the mean of -log(1 - u), which is 1
            on average for other tokens.
        p_value: probability that tokens without the mark score as high.
    """

    scored: int
    score: float
    p_value: float


def detect(mark: TokenMark, tokens: Tokens[int], vocab: int) -> Detection:
    """Score the tokens of a text.

    Args:
        vocab: size of the model's logits.
    """
    if isinstance(mark, GreenListMark):
        return _detect_green(mark, tokens, vocab)
    return _GumbelDetector(mark, tokens[:MAX_GUMBEL_TOKENS]).detect()


def _detect_green(mark: GreenListMark, tokens: Tokens[int], vocab: int) -> Detection:
    """Compare the number of green tokens with a binomial distribution.

    A pair of tokens that occurs again counts once, since its color is no new evidence.
    """
    pairs = sorted(set(pairwise(tokens)))
    if not pairs:
        return Detection(0, 0.0, 1.0)
    green = sum(bool(green_list(mark.key, mark.gamma, previous, vocab)[token]) for previous, token in pairs)
    share = int(vocab * mark.gamma) / vocab
    return Detection(len(pairs), green / len(pairs), binomial_tail(len(pairs), green, share))


def binomial_tail(trials: int, hits: int, share: float) -> float:
    """Return the probability of at least `hits` in so many trials that each hit with probability `share`."""
    if hits == 0:
        return 1.0
    if not 0 < share < 1:
        return float(share == 1)
    k = torch.arange(hits, trials + 1, dtype=torch.float64)
    ways = math.lgamma(trials + 1) - torch.lgamma(k + 1) - torch.lgamma(trials - k + 1)
    logs = ways + k * math.log(share) + (trials - k) * math.log1p(-share)
    return min(1.0, math.exp(float(logs.logsumexp(0))))


class _GumbelDetector:
    """Comparison of a text and its parts with all places of a key's ring.

    The parts are halves, quarters and so on, so that the mark is found beside text without it, and after an
    insertion, which moves the rest along the ring.
    """

    def __init__(self, mark: GumbelMark, tokens: Tokens[int]) -> None:
        self._tokens = tokens
        self._words = key_words([ring_key(mark.key, place) for place in range(RING)], torch.device("cpu"))
        self._best = Detection(0, 0.0, 1.0)
        self._tests = 0

    def detect(self) -> Detection:
        if not self._tokens:
            return self._best
        self._sums(0, len(self._tokens))
        best = self._best
        # the strongest of so many tests, as if they were independent (Šidák); otherwise it is less likely still
        corrected = 1.0 if best.p_value >= 1 else -math.expm1(self._tests * math.log1p(-best.p_value))
        return Detection(best.scored, best.score, corrected)

    def _sums(self, start: int, end: int) -> Tensor:
        """Score a part. Return the sum of its tokens' scores for each place where the text may begin: [RING]."""
        if end - start >= 2 * SHORTEST_PART:
            middle = (start + end) // 2
            sums = self._sums(start, middle) + self._sums(middle, end)
        else:
            sums = torch.zeros(RING, dtype=torch.float64)
            for at in range(start, end):
                first, second = self._words.roll(-at, 0).unbind(1)
                sums -= torch.log1p(-uniforms(torch.tensor(self._tokens[at], dtype=torch.int32), first, second))
        self._consider(float(sums.max()), end - start)
        return sums

    def _consider(self, total: float, count: int) -> None:
        """Compare the highest sum with a gamma distribution, that of the sum of exponential variables."""
        self._tests += RING
        shape, found = (torch.tensor(float(value), dtype=torch.float64) for value in (count, total))
        p_value = float(torch.special.gammaincc(shape, found))
        if p_value < self._best.p_value:
            self._best = Detection(count, total / count, p_value)
