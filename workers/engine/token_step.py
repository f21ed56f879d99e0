"""Drawing of a step's tokens from its logits, and what they add to each request."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from shared.errors import EngineFailed, HeadraceError
from shared.protocol import FinishReason, Token
from workers.engine.interface import EngineOutput
from workers.engine.sampling.logprobs import StepLogprobs
from workers.engine.sampling.rows import Rows
from workers.engine.sampling.sampler import NOTHING_DRAWN, forced, sample
from workers.engine.sequence import Sequence
from workers.engine.stage import failure_of
from workers.engine.text.tokenizer import Tokenizer
from workers.engine.waits import EngineWaits

if TYPE_CHECKING:  # the module needs llguidance
    from workers.engine.grammar.matcher import Mask, MaskFiller


@dataclass(frozen=True)
class Drawn:
    """The token drawn for each of some sequences, None where none could be.

    Attributes:
        logprobs: of these rows, if some of them ask for them.
    """

    sequences: list[Sequence]
    tokens: list[int | None]
    logprobs: StepLogprobs | None = None


class TokenDrawer:
    """Draws the next token of sequences from their logits.

    Args:
        masks: None without support for grammars.
        rows: draws from rows of logits.
    """

    def __init__(self, tokenizer: Tokenizer, masks: MaskFiller | None, rows: Rows) -> None:
        self._tokenizer = tokenizer
        self._rows = rows
        self._masks = masks

    def begin_mask(self, sequences: list[Sequence]) -> Mask | None:
        """Start to fill the mask of a step's rows; it must be settled before anything else happens to a grammar."""
        return self._masks.begin(sequences) if self._masks else None

    def draw(self, logits: Tensor, sequences: list[Sequence], mask: Mask | None) -> Drawn:
        """Draw from logits [R, vocab], one row per sequence, which are changed in place; the mask is settled."""
        if mask is not None:
            mask.check()
        if not [sequence for sequence in sequences if not sequence.plain]:
            return Drawn(sequences, sample(logits, sequences, mask, self._rows))
        text = self._tokenizer
        logprobs = StepLogprobs(logits, sequences, text.token_bytes, text.special_ids, self._rows)
        drawn = sample(logits, sequences, mask, self._rows)
        tokens = [
            token if sequence.reasoning_parser is None else forced(sequence, token)
            for sequence, token in zip(sequences, drawn, strict=True)
        ]
        return Drawn(sequences, tokens, logprobs if logprobs.asked else None)

    def draw_now(self, logits: Tensor, sequences: list[Sequence]) -> Drawn:
        """Fill the mask and draw; see `draw`."""
        mask = self.begin_mask(sequences)
        if mask is not None:
            mask.settle()
        return self.draw(logits, sequences, mask)


class StepOutputs:
    """Tokens and errors that one step adds to each request.

    Attributes:
        failed: the errors that end requests.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: dict[str, tuple[Token, ...]] = {}
        self._echoes: dict[str, tuple[Token, ...]] = {}
        self._cached: dict[str, int] = {}
        self._waits: dict[str, EngineWaits] = {}
        self.failed: dict[str, HeadraceError] = {}

    def append(self, drawn: Drawn) -> None:
        """Append drawn tokens to their sequences, unless their request has failed."""
        logprobs = drawn.logprobs
        for row, (sequence, token_id) in enumerate(zip(drawn.sequences, drawn.tokens, strict=True)):
            job_id = sequence.job_id
            if self.failed and job_id in self.failed:
                continue
            try:
                if logprobs is None and token_id is not None and sequence.max_tokens:  # nearly always
                    found: tuple[Token, ...] = (sequence.accept(token_id),)
                else:
                    found = _append(sequence, token_id, row, logprobs)
                if sequence.echo is not None:
                    self._echoes[job_id] = sequence.echo.tokens(self._tokenizer.token_texts, sequence.choice)
                    sequence.echo = None
            except BaseException as error:
                failure = failure_of("decoding of a token", error, run_id=job_id)
                if failure is None:
                    raise
                self.failed[job_id] = failure
                continue
            known = self._tokens.setdefault(job_id, found)
            if known is not found:
                self._tokens[job_id] = known + found
            if sequence.waits.changed:
                self._cached[job_id] = sequence.num_cached_tokens or 0
                self._waits[job_id] = sequence.waits.take()

    def outputs(self, complete: Collection[str]) -> list[EngineOutput]:
        """Return the output of each request; one that has failed ends with the tokens before its error.

        Args:
            complete: the requests that have no choice left running.
        """
        if not (self.failed or self._echoes or self._waits):  # nearly always
            if not complete:
                return [EngineOutput(job_id, tokens) for job_id, tokens in self._tokens.items()]
            return [EngineOutput(job_id, tokens, job_id in complete) for job_id, tokens in self._tokens.items()]
        return [
            EngineOutput(
                job_id,
                self._tokens.get(job_id, ()),
                job_id in complete or job_id in self.failed,
                self.failed.get(job_id),
                self._echoes.get(job_id, ()),
                self._cached.get(job_id, 0),
                waits=self._waits.get(job_id),
            )
            for job_id in self.failed | self._tokens
        ]


def _append(sequence: Sequence, token_id: int | None, row: int, logprobs: StepLogprobs | None) -> tuple[Token, ...]:
    """Append a drawn token, unless the sequence only computes its prompt.

    Args:
        row: of the token among the step's.
        logprobs: of the step, if some of its rows ask for them.

    Raises:
        EngineFailed: no token was drawn, or the grammar refuses it.
    """
    if sequence.max_tokens == 0:
        sequence.finish_reason = FinishReason.LENGTH
        return ()
    if token_id is None:
        raise EngineFailed(NOTHING_DRAWN)
    return (sequence.accept(token_id, None if logprobs is None else logprobs.for_token(row, token_id)),)
