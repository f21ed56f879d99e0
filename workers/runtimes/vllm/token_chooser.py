"""Processor of vLLM's logits that chooses the next token of each row with the sampler of the native engine.

It leaves one token per row, which vLLM's own sampler then takes. Penalties, seeds, forbidden tokens and grammars
depend on a sequence's tokens alone, and hold after a takeover as before it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from shared.errors import EngineFailed, HeadraceError
from workers.engine.grammar.matcher import Mask, MaskFiller
from workers.engine.sampling.sampler import NOTHING_DRAWN, forced, sample, takes_most_likely
from workers.engine.stage import Stage
from workers.runtimes.vllm.choice import Choice
from workers.runtimes.vllm.sampling_arguments import CHOICE


class TokenChooser(LogitsProcessor):  # type: ignore[misc]  # vLLM is not installed here
    """Chooses the tokens of one engine; vLLM constructs it."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._choices: dict[int, Choice] = {}  # by row
        self._masks = MaskFiller(vllm_config.model_config.get_vocab_size())
        self._mask: Mask | None = None

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the changes of the batch, and start to fill the masks of the next step."""
        if batch_update is not None:
            for row in batch_update.removed:
                self._choices.pop(row, None)
            for row, params, _, _ in batch_update.added:
                self._choices[row] = params.extra_args[CHOICE]
            for source, target, direction in batch_update.moved:
                self._move(source, target, swap=direction is MoveDirectionality.SWAP)
        self._masked()  # threads may still fill those of a step that computed nothing
        self._mask = self._masks.begin([self._choices[row].sequence for row in range(len(self._choices))])

    def _move(self, source: int, target: int, *, swap: bool) -> None:
        moved = self._choices.pop(source)
        if swap:
            self._choices[source] = self._choices[target]
        self._choices[target] = moved

    def apply(self, logits: Tensor) -> Tensor:
        """Leave the chosen token of each row: [rows, vocab] float32, in place."""
        if not self._choices:  # while vLLM measures its memory
            return logits
        choices = [self._choices[row] for row in range(len(logits))]
        for choice in choices:
            choice.failure = None
        mask = self._masked(choices)
        is_plain = all(takes_most_likely(choice.sequence) for choice in choices)
        tokens = _sample(logits, choices, mask) if is_plain else _sample_isolated(logits, choices, mask)
        for choice, token in zip(choices, tokens, strict=True):
            if token is None and choice.failure is None:
                choice.failure = EngineFailed(NOTHING_DRAWN)
        if not is_plain:
            logits.fill_(-torch.inf)
            chosen = torch.tensor([token or 0 for token in tokens], device=logits.device)
            logits.scatter_(1, chosen[:, None], 0.0)
        return logits

    def _masked(self, choices: list[Choice] | None = None) -> Mask | None:
        """Return the mask of this step once it is filled, None if no row has a grammar.

        A choice whose matcher fails gets the failure, and no mask.
        """
        mask, self._mask = self._mask, None
        if mask is None:
            return None
        mask.settle()
        if choices is not None and any(part.exception() for part in mask.filling):
            for row in mask.rows:
                _fill(mask, row, choices[row])
        return mask


def _fill(mask: Mask, row: int, choice: Choice) -> None:
    matcher = choice.sequence.matcher
    assert matcher is not None  # the mask has its row
    try:
        with Stage("masking of tokens", run_id=choice.sequence.job_id):
            matcher.fill(mask.bitmask, row)
    except HeadraceError as error:
        choice.failure = error
        mask.bitmask[row] = -1


def _sample(logits: Tensor, choices: list[Choice], mask: Mask | None) -> list[int | None]:
    """Draw the next token of each choice, or take the one that must come in its place."""
    sequences = [choice.sequence for choice in choices]
    drawn = sample(logits, sequences, mask)
    return [forced(sequence, token) for sequence, token in zip(sequences, drawn, strict=True)]


def _sample_isolated(logits: Tensor, choices: list[Choice], mask: Mask | None) -> list[int | None]:
    """Draw as `_sample` does. If that fails, draw row by row, so that the failure is the offender's alone."""
    original = logits.clone()
    try:
        with Stage("sampling", run_id=" ".join(choice.sequence.job_id for choice in choices)):
            return _sample(logits, choices, mask)
    except HeadraceError:
        return [_sample_alone(original, row, choice, mask) for row, choice in enumerate(choices)]


def _sample_alone(logits: Tensor, row: int, choice: Choice, mask: Mask | None) -> int | None:
    only = Mask([0], mask.bitmask[row : row + 1], ()) if mask is not None and row in mask.rows else None
    try:
        with Stage("sampling", run_id=choice.sequence.job_id):
            return _sample(logits[row : row + 1], [choice], only)[0]
    except HeadraceError as error:
        choice.failure = error
        return None
