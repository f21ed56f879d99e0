"""A choice's place in a compiled grammar, by xgrammar; and the masks of a step, filled while the model computes it.

It knows nothing of where a grammar comes from.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence as Ordered
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
import xgrammar
from torch import Tensor

from shared.errors import InvalidRequest
from workers.engine.sequence import Sequence

PATIENCE = 20.0  # seconds that one choice's grammar may take in all: an ambiguous one would hold up its neighbours
FILLERS = max(1, min(4, (os.cpu_count() or 1) // 2))  # threads


class GrammarMatcher:
    """A Matcher; see there."""

    def __init__(self, compiled: xgrammar.CompiledGrammar, *, ends_by_token: bool) -> None:
        self._matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=not ends_by_token)
        self._spent = 0.0

    @property
    def finished(self) -> bool:
        return self._matcher.is_terminated()

    def accept(self, token_id: int) -> bool:
        """Raises InvalidRequest for a grammar that costs too much time."""
        begin = time.monotonic()
        accepted = self._matcher.accept_token(token_id)
        self._spent += time.monotonic() - begin
        if self._spent > PATIENCE:
            raise InvalidRequest("the grammar takes too long to follow: it is too ambiguous")
        return accepted

    def fill(self, bitmask: Tensor, row: int) -> None:
        begin = time.monotonic()
        self._matcher.fill_next_token_bitmask(bitmask, row)
        self._spent += time.monotonic() - begin


@dataclass(frozen=True)
class Mask:
    """What the rows of one step may say next, once it is filled.

    Attributes:
        rows: those that are constrained.
        bitmask: [R, vocab / 32] int32, a bit a token.
    """

    rows: list[int]
    bitmask: Tensor
    filling: tuple[Future[None], ...]

    def settle(self) -> None:
        """Wait until no thread looks at a matcher any more."""
        wait(self.filling)

    def check(self) -> None:
        """Raise what the filling of a settled mask raised."""
        for part in self.filling:
            part.result()

    def apply(self, logits: Tensor) -> None:
        """Leave only what may come next, in [R, vocab] float32, in place."""
        xgrammar.apply_token_bitmask_inplace(logits, self.bitmask.to(logits.device), indices=self.rows)


class MaskFiller:
    """Fills the masks of one engine's steps in threads of its own.

    Args:
        vocab_size: of the model's logits.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._threads = ThreadPoolExecutor(FILLERS, "mask")

    def begin(self, sequences: Ordered[Sequence]) -> Mask | None:
        """Start on the mask for these rows; None where none of them is constrained."""
        rows = [row for row, sequence in enumerate(sequences) if sequence.matcher is not None]
        if not rows:
            return None
        bitmask = torch.empty(xgrammar.get_bitmask_shape(len(sequences), self._vocab_size), dtype=torch.int32)
        parts = [rows[start::FILLERS] for start in range(min(FILLERS, len(rows)))]
        filling = tuple(self._threads.submit(_fill, bitmask, sequences, part) for part in parts)
        return Mask(rows, bitmask, filling)


def _fill(bitmask: Tensor, sequences: Ordered[Sequence], rows: list[int]) -> None:
    for row in rows:
        matcher = sequences[row].matcher
        assert matcher is not None  # `begin` chose them
        matcher.fill(bitmask, row)
