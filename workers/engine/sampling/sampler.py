"""Sampler: it draws the next token of each row from its logits.

A row's result depends only on its logits, its tokens and (seed, choice, position): random numbers have no state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workers.engine.sampling.rows import Rows, is_greedy
from workers.engine.sampling.torch_rows import TORCH_ROWS
from workers.engine.sequence import Sequence

if TYPE_CHECKING:  # the module needs llguidance
    from workers.engine.grammar.matcher import Mask

NOTHING_DRAWN = (
    "the model's output is NaN or infinite, or the grammar allows no token"  # where `sample` returns None
)


@torch.inference_mode()
def sample(
    logits: Tensor, sequences: list[Sequence], mask: Mask | None = None, rows: Rows = TORCH_ROWS
) -> list[int | None]:
    """Draw the next token of each sequence; None where the logits are not finite or the grammar allows no token.

    Args:
        logits: [R, vocab] float32, one row per sequence; penalties and grammars change it in place.
        mask: the tokens that the rows with a grammar allow.
        rows: draws from the result.
    """
    adjusted = [row for row, sequence in enumerate(sequences) if sequence.adjusted]
    for row in adjusted:
        sequence = sequences[row]
        if sequence.watermark is not None:  # first, as in TGI
            sequence.watermark.bias(logits[row], sequence.tokens)
        if sequence.penalized:
            _penalize(logits[row], sequence)
    if mask is not None:
        mask.apply(logits)
    for row in adjusted:
        sequence = sequences[row]
        if sequence.rules is not None:
            sequence.rules.apply(logits[row], sequence.tokens, sequence.num_prompt_tokens)
    return rows.draw(logits, sequences)


def forced(sequence: Sequence, drawn: int | None) -> int | None:
    """Return the drawn token, or the one that must come in its place. None, for a failure, stays."""
    token = sequence.forced_token
    return drawn if drawn is None or token is None else token


def takes_most_likely(sequence: Sequence) -> bool:
    """Return whether the model's most likely token is always the next one, whatever the tokens so far."""
    restricted = sequence.adjusted or sequence.matcher is not None or sequence.forced_token is not None
    return is_greedy(sequence.params) and not restricted


def _penalize(row: Tensor, sequence: Sequence) -> None:
    """Apply transformers' repetition penalty to all tokens, OpenAI's penalties to the output, and the biases."""
    params = sequence.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sequence.tokens, device=row.device).unique()  # type: ignore[no-untyped-call]  # torch has no types for it
        values = row[seen]
        penalty = params.repetition_penalty
        row[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if (params.presence_penalty or params.frequency_penalty) and sequence.num_output_tokens:
        output = torch.tensor(sequence.tokens[sequence.num_prompt_tokens :], device=row.device)
        seen, counts = output.unique(return_counts=True)  # type: ignore[no-untyped-call]  # as above
        row[seen] -= params.presence_penalty + params.frequency_penalty * counts
    if params.logit_bias:
        biased = torch.tensor(list(params.logit_bias), device=row.device)
        row[biased] += torch.tensor(list(params.logit_bias.values()), device=row.device)
