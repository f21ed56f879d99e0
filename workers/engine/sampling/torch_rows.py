"""Operations on rows of logits in plain torch, for every device; see `Rows`. They are the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from shared.protocol import SamplingParams
from workers.engine.sampling.rows import is_greedy, key_of
from workers.engine.sampling.typical import keep_typical
from workers.engine.sequence import Sequence

MAX_PARTIAL_SORT = 1024  # most likely tokens to sort; all are sorted if these are not enough


class TorchRows:
    """Rows in plain torch; see `Rows`."""

    def draw(self, logits: Tensor, sequences: list[Sequence]) -> list[int | None]:
        highest, tokens = logits.max(dim=-1)
        finite = highest.isfinite().tolist()
        drawn: list[int | None] = [t if ok else None for t, ok in zip(tokens.tolist(), finite, strict=True)]
        rows = [i for i, s in enumerate(sequences) if finite[i] and not is_greedy(s.params)]
        if rows:
            picked = logits if len(rows) == len(sequences) else logits[rows]
            for i, token in zip(rows, _draw(picked, [sequences[i] for i in rows]).tolist(), strict=True):
                drawn[i] = token
        return drawn

    def log_softmax(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(-1)


TORCH_ROWS = TorchRows()


def exponentials(keys: list[tuple[int, int]], vocab: int, device: torch.device) -> Tensor:
    """Draw from the standard exponential distribution for each key and token: [R, vocab] float32."""
    words = key_words(keys, device)
    tokens = torch.arange(vocab, dtype=torch.int32, device=device)
    return uniforms(tokens, words[:, :1], words[:, 1:]).log_().neg_()


def key_words(keys: list[tuple[int, int]], device: torch.device) -> Tensor:
    """Return the words of keys as a tensor: [R, 2] int32."""
    return torch.tensor([[_signed(word) for word in key] for key in keys], dtype=torch.int32, device=device)


def uniforms(tokens: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Draw a number between 0 and 1, without either, for each token id and words of a key, which are broadcast.

    The generator is counter-based: two rounds of the integer hash lowbias32 over the token id and the key
    (https://github.com/skeeto/hash-prospector), in wrapping 32-bit arithmetic.
    """
    bits = _lowbias32(_lowbias32(tokens ^ first).add_(second))
    # 23 bits plus a half are exact in float32; one more bit could round up to 1, whose draw of 0 would give 0 / 0
    return bits.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF).float().add_(0.5).mul_(2.0**-23)


def _lowbias32(x: Tensor) -> Tensor:
    x ^= (x >> 16) & 0xFFFF  # int32 shifts are arithmetic; the mask makes them logical
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= _signed(0x846CA68B)
    x ^= (x >> 16) & 0xFFFF
    return x


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def _draw(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    """Draw from the filtered distribution by an exponential race, argmax of p / E: [R] int64.

    Here rounding matters only if two tokens almost tie; inverting a cumulative sum, it would at the border of every
    token. So an answer that is continued on another machine stays the same.
    """
    params = [sequence.params for sequence in sequences]
    temperatures = torch.tensor([p.temperature for p in params], device=logits.device)
    below = logits - logits.amax(-1, keepdim=True)  # before the division, which may overflow
    probs = (below / temperatures[:, None]).softmax(-1)
    if any(p.top_k or p.top_p < 1.0 or p.min_p for p in params):
        probs = probs.masked_fill(probs < thresholds(probs, params)[:, None], 0)
    if any(p.typical_p < 1.0 for p in params):
        probs = keep_typical(probs, params)
    keys = [key_of(sequence) for sequence in sequences]
    return (probs / exponentials(keys, probs.shape[1], logits.device)).argmax(-1)


def thresholds(probs: Tensor, params: list[SamplingParams]) -> Tensor:
    """Return the lowest probability that passes top-k, top-p over the remaining tokens, and min-p: [R].

    Tokens as likely as the last one kept are kept too.
    """
    width = min(MAX_PARTIAL_SORT, probs.shape[1])
    least, settled = _thresholds(probs.topk(width).values, params, probs.shape[1])
    if not all(settled):
        rows = [i for i, done in enumerate(settled) if not done]
        ordered = probs[rows].sort(descending=True).values
        least[rows], _ = _thresholds(ordered, [params[i] for i in rows], probs.shape[1])
    return least


def _thresholds(ordered: Tensor, params: list[SamplingParams], vocab: int) -> tuple[Tensor, list[bool]]:
    """Return thresholds from each row's top tokens, [R, width] descending, and whether these were enough."""
    device, width = ordered.device, ordered.shape[1]
    ks = torch.tensor([min(p.top_k or vocab, vocab) for p in params], device=device)
    cumulative = ordered.cumsum(-1, dtype=torch.float64)
    last_of_k = ks.clamp(max=width) - 1
    mass = torch.where(ks < vocab, cumulative.gather(1, last_of_k[:, None])[:, 0], 1.0)
    wanted = torch.tensor([p.top_p for p in params], dtype=torch.float64, device=device) * mass
    ahead = cumulative - ordered  # a token is kept while the mass ahead of it is below the wanted mass
    kept = torch.minimum((ahead < wanted[:, None]).sum(-1), last_of_k + 1).clamp(min=1)
    unlimited = torch.tensor([p.top_p >= 1.0 and not p.top_k for p in params], device=device)
    least = torch.where(unlimited, 0, ordered.gather(1, kept[:, None] - 1)[:, 0])
    min_p = torch.tensor([p.min_p for p in params], device=device)
    known = (kept < width) & ((ks <= width) | (ks == vocab))
    settled = unlimited | known if width < vocab else torch.ones_like(unlimited)
    return torch.maximum(least, ordered[:, 0] * min_p), settled.tolist()
