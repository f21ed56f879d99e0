"""Matcher of one choice against a compiled grammar, and the masks of a step, filled while the model computes it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from collections.abc import Sequence as Ordered
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import torch
from llguidance import LLMatcher
from torch import Tensor

from shared.errors import InvalidRequest
from workers.engine.sequence import Sequence

MAX_FORCING_S = 1.0  # CPU time to find the forced tokens of one choice, which only saves time
MAX_MATCHING_S = 10.0  # CPU time for one choice's grammar; an ambiguous one would slow down its neighbours
NUM_FILLER_THREADS = max(1, min(4, (os.cpu_count() or 1) // 2))
NOT_ALLOWED = ("satisfy the grammar", "out of range", "parser stopped")  # in errors about a token, not about limits
BITS = 32  # tokens in one word of a mask


class GrammarMatcher:
    """Matcher by llguidance; see `Matcher`.

    Args:
        compiled: the grammar; all matchers of it share its lexer, whose states are computed once.
        forget: called if matching fails, since the shared lexer may have reached its limits.
    """

    def __init__(self, compiled: LLMatcher, forget: Callable[[], None]) -> None:
        self._matcher = compiled.deep_copy()
        self._forget = forget
        self._spent = self._spent_on_forced = 0.0

    @property
    def finished(self) -> bool:
        return self._matcher.is_stopped()

    def accept(self, token_id: int) -> bool:
        """Accept a token. Raises InvalidRequest once the grammar exceeds its limits or has taken too much time."""
        begin = time.thread_time()
        accepted = self._matcher.consume_token(token_id)
        self._count(begin)
        if not accepted and not any(reason in self._matcher.get_error() for reason in NOT_ALLOWED):
            raise self._too_complex()
        return accepted

    def fill(self, bitmask: Tensor, row: int) -> None:
        """Fill a row of a mask. Raises InvalidRequest if the grammar exceeds its limits."""
        begin = time.thread_time()
        words = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.int32)
        bitmask.numpy()[row] = words[: bitmask.shape[1]]
        self._count(begin)
        if self._matcher.is_error():
            raise self._too_complex()

    def forced_tokens(self) -> list[int]:
        if self._spent_on_forced > MAX_FORCING_S:
            return []
        begin = time.thread_time()
        tokens = self._matcher.compute_ff_tokens()
        self._spent_on_forced += time.thread_time() - begin
        return tokens

    def _too_complex(self) -> InvalidRequest:
        self._forget()
        return InvalidRequest("the grammar is too complex: the next token takes too long to find")

    def _count(self, begin: float) -> None:
        self._spent += time.thread_time() - begin
        if self._spent > MAX_MATCHING_S:
            raise InvalidRequest("the grammar is too ambiguous: matching it takes too long")


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
        packed = self.bitmask.numpy()[self.rows].view(np.uint8)
        denied = np.unpackbits(~packed, axis=1, count=logits.shape[1], bitorder="little").view(np.bool_)
        if logits.device.type == "cpu":  # numpy starts no threads, which take longer than the work
            values = logits.numpy()
            for row, mask in zip(self.rows, denied, strict=True):
                np.copyto(values[row], -np.inf, where=mask)
        else:
            mask = torch.from_numpy(denied).to(logits.device)
            logits[self.rows] = logits[self.rows].masked_fill(mask, -torch.inf)


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
        bitmask = torch.empty((len(sequences), -(-self._vocab_size // BITS)), dtype=torch.int32)
        parts = [rows[start::NUM_FILLER_THREADS] for start in range(min(NUM_FILLER_THREADS, len(rows)))]
        filling = tuple(self._threads.submit(_fill, bitmask, sequences, part) for part in parts)
        return Mask(rows, bitmask, filling)


def _fill(bitmask: Tensor, sequences: Ordered[Sequence], rows: list[int]) -> None:
    for row in rows:
        matcher = sequences[row].matcher
        assert matcher is not None  # `begin` selected them
        matcher.fill(bitmask, row)
