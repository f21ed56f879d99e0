"""One choice of a request as the engine runs it: its tokens, how far they are computed, and where it ends.

All of it can be derived again from the prompt and the tokens emitted so far. It knows nothing of batches or
tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.errors import EngineFailed
from shared.protocol import FinishReason, PriorityClass, SamplingParams, Token, TokenLogprobs
from workers.engine.echo import Echo
from workers.engine.interface import Matcher, Reader
from workers.engine.text.detokenizer import TextStream

RANKS = {priority: rank for rank, priority in enumerate(PriorityClass)}  # 0 is the most urgent


@dataclass(eq=False, slots=True)
class Sequence:
    """Prompt and output of one choice.

    Attributes:
        order: arrival, lowest first.
        tokens: prompt and output.
        num_computed_tokens: how many of `tokens` have their keys and values in the cache.
        max_tokens: most output tokens.
        matcher: its grammar, if any, after the output so far.
        reader: finds its tool calls, if it may make any.
        priority, tenant: who goes first where not all can run.
        preempted: it gave way and has not advanced by a token since.
        prefix_salt, block_keys: for the prefix cache; keys of the first full blocks, as far as they were made.
        block_table: KV blocks of positions 0 …, block_size a block.
        forks: choices of the same request that wait to share this one's prompt.
        echo: the prompt, to be told with the first token; only of the choice that computes it.
    """

    job_id: str
    choice: int
    order: int
    params: SamplingParams
    tokens: list[int]
    num_prompt_tokens: int
    max_tokens: int
    eos_token_ids: frozenset[int]
    text: TextStream
    matcher: Matcher | None = None
    reader: Reader | None = None
    priority: PriorityClass = PriorityClass.STANDARD
    tenant: str = "default"
    prefix_salt: bytes = b""
    preempted: bool = False
    num_computed_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    block_keys: list[bytes] = field(default_factory=list)
    forks: list[Sequence] = field(default_factory=list)
    echo: Echo | None = None
    finish_reason: FinishReason | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.tokens) - self.num_computed_tokens

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def prefilling(self) -> bool:
        """Whether it computes its prompt, or computes again what it lost."""
        return self.num_uncomputed_tokens > 1 or self.num_output_tokens == 0

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None

    @property
    def rank(self) -> int:
        return RANKS[self.priority]

    @property
    def urgency(self) -> tuple[int, int]:
        """Class, then arrival; the lower goes first and gives way last."""
        return self.rank, self.order

    @property
    def seats(self) -> int:
        """How many sequences run, or will, because this one does."""
        return 1 + len(self.forks)

    def accept(self, token_id: int, logprobs: TokenLogprobs | None = None) -> Token:
        """Append the next output token; sets `finish_reason` where it is the last.

        Raises EngineFailed, and appends nothing, where the grammar does not take it; InvalidRequest where that
        takes too long.
        """
        if self.matcher is not None and not self.matcher.accept(token_id):
            raise EngineFailed("a token does not fit the request's grammar")
        self.tokens.append(token_id)
        text, self.finish_reason = self._settle(token_id)
        if self.reader is None:
            return Token(self.choice, token_id, text, self.finish_reason, logprobs)
        text, calls = self.reader.feed(text, last=self.ended)
        if self.finish_reason is FinishReason.STOP and self.reader.called:
            self.finish_reason = FinishReason.TOOL_CALLS
        return Token(self.choice, token_id, text, self.finish_reason, logprobs, calls)

    def _settle(self, token_id: int) -> tuple[str, FinishReason | None]:
        """The text that the last token adds, and why the choice ends with it, if it does."""
        if token_id in self.eos_token_ids and not self.params.ignore_eos:
            text, _ = self.text.flush()
            return text, FinishReason.STOP
        text, stopped = self.text.feed(token_id)
        if stopped:
            return text, FinishReason.STOP
        if self.matcher is not None and self.matcher.finished:
            end = FinishReason.STOP
        elif self.num_output_tokens >= self.max_tokens:
            end = FinishReason.LENGTH
        else:
            return text, None
        rest, stopped = self.text.flush()
        return text + rest, FinishReason.STOP if stopped else end
