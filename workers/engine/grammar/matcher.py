"""Matcher of one choice against a compiled grammar, and the masks of a step, filled while the model computes it."""

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

MAX_MATCHING_S = 20.0  # total time for one choice's grammar; an ambiguous one would slow down its neighbours
NUM_FILLER_THREADS = max(1, min(4, (os.cpu_count() or 1) // 2))


class GrammarMatcher:
    """Matcher by xgrammar; see `Matcher`."""

    def __init__(self, compiled: xgrammar.CompiledGrammar, *, ends_by_token: bool) -> None:
        self._matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=not ends_by_token)
        self._spent = 0.0

    @property
    def finished(self) -> bool:
        return self._matcher.is_terminated()

    def accept(self, token_id: int) -> bool:
        """Accept a token. Raises InvalidRequest once the grammar has taken too much time."""
        begin = time.monotonic()
        accepted = self._matcher.accept_token(token_id)
        self._spent += time.monotonic() - begin
        if self._spent > MAX_MATCHING_S:
            raise InvalidRequest("the grammar is too ambiguous: matching it takes too long")
        return accepted

    def fill(self, bitmask: Tensor, row: int) -> None:
        begin = time.monotonic()
        self._matcher.fill_next_token_bitmask(bitmask, row)
        self._spent += time.monotonic() - begin


@dataclass(frozen=True)
class Mask:
    """Tokens that the rows of one step allow, complete once it is filled.

    Attributes:
        rows: the rows that have a grammar.
        bitmask: [R, vocab / 32] int32, one bit per token.
        filling: the threads' pending work.
    """

    rows: list[int]
    bitmask: Tensor
    filling: tuple[Future[None], ...]

    def settle(self) -> None:
        """Wait until no thread uses a matcher."""
        wait(self.filling)

    def check(self) -> None:
        """Raise the exception that filling a settled mask raised, if any."""
        for part in self.filling:
            part.result()

    def apply(self, logits: Tensor) -> None:
        """Mask the logits [R, vocab] float32 in place, leaving only allowed tokens."""
        xgrammar.apply_token_bitmask_inplace(logits, self.bitmask.to(logits.device), indices=self.rows)


class MaskFiller:
    """Threads that fill the masks of one engine's steps.

    Args:
        vocab_size: size of the model's logits.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._threads = ThreadPoolExecutor(NUM_FILLER_THREADS, "mask")

    def begin(self, sequences: Ordered[Sequence]) -> Mask | None:
        """Start to fill the mask of these rows. Return None if no row has a grammar."""
        rows = [row for row, sequence in enumerate(sequences) if sequence.matcher is not None]
        if not rows:
            return None
        bitmask = torch.empty(xgrammar.get_bitmask_shape(len(sequences), self._vocab_size), dtype=torch.int32)
        parts = [rows[start::NUM_FILLER_THREADS] for start in range(min(NUM_FILLER_THREADS, len(rows)))]
        filling = tuple(self._threads.submit(_fill, bitmask, sequences, part) for part in parts)
        return Mask(rows, bitmask, filling)


def _fill(bitmask: Tensor, sequences: Ordered[Sequence], rows: list[int]) -> None:
    for row in rows:
        matcher = sequences[row].matcher
        assert matcher is not None  # `begin` selected them
        matcher.fill(bitmask, row)
