"""State of one choice of a request in the engine: its tokens, how many are computed, and where it ends.

All of it can be derived again from the prompt and the tokens emitted so far.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shared.errors import EngineFailed
from shared.protocol import CallDelta, FinishReason, PriorityClass, SamplingParams, StopReason, Token, TokenLogprobs
from workers.engine.echo import Echo
from workers.engine.interface import LogitsRules, Matcher, ToolParser
from workers.engine.mark import Mark
from workers.engine.text.detokenizer import Detokenizer, TextStream
from workers.engine.text.reasoning_parser import ReasoningParser
from workers.engine.waits import WaitClock

if TYPE_CHECKING:  # adapters are off by default
    from workers.engine.lora.weights import AdapterWeights

RANKS = {priority: rank for rank, priority in enumerate(PriorityClass)}  # 0 is the most urgent


@dataclass(eq=False, slots=True, weakref_slot=True)
class Sequence:
    """Prompt and output of one choice.

    Attributes:
        arrival: number of the sequence in order of arrival.
        tokens: prompt and output.
        num_computed_tokens: how many of `tokens` have their keys and values in the cache.
        max_tokens: most output tokens; 0 only computes the prompt.
        rules: tokens that the request forbids, if it forbids any.
        watermark: the mark of the answer, if the request asks for one.
        matcher: the state of the choice's grammar after the output so far, if it has a grammar.
        tool_parser: finds tool calls in the choice's text, if it may make any.
        reasoning_parser: separates the choice's reasoning, if the model reasons.
        priority, tenant, due: decide which sequences run when not all can.
        preempted: True from a preemption until the sequence has advanced by a token.
        num_cached_tokens: how many tokens of the prompt were in the prefix cache when it started; None until then.
        adapter: the LoRA adapter to compute with, if any.
        prefix_salt, block_keys: for the prefix cache; the keys of the first full blocks, as far as computed.
        block_table: the KV block of each `block_size` positions; an array, which a step copies without its numbers.
        num_writable_tokens: up to which position its blocks are its own, from the computed tokens on; 0 if unknown.
        forks: choices of the same request that wait until this one's prompt is computed, to share it.
        echo: the prompt that is sent with the first token, on the choice that computes the prompt.
        penalized: its params change logits, by penalties or biases.
        adjusted: its logits may change before the draw, by these, a mark or rules; known from the start.
        plain: its tokens are drawn from its logits as they are, and reported without log-probabilities.
        waits: measures when the run does not compute; its choices share it.
    """

    job_id: str
    choice: int
    arrival: int
    params: SamplingParams
    tokens: list[int]
    num_prompt_tokens: int
    max_tokens: int
    eos_token_ids: frozenset[int]
    text: TextStream
    rules: LogitsRules | None = None
    watermark: Mark | None = None
    matcher: Matcher | None = None
    tool_parser: ToolParser | None = None
    reasoning_parser: ReasoningParser | None = None
    priority: PriorityClass = PriorityClass.STANDARD
    tenant: str = "default"
    due: float = 0.0
    prefix_salt: bytes = b""
    adapter: AdapterWeights | None = None
    preempted: bool = False
    num_cached_tokens: int | None = None
    num_computed_tokens: int = 0
    num_writable_tokens: int = 0
    block_table: array[int] = field(default_factory=lambda: array("q"))
    block_keys: list[bytes] = field(default_factory=list)
    forks: tuple[Sequence, ...] = ()
    echo: Echo | None = None
    finish_reason: FinishReason | None = None
    waits: WaitClock = field(default_factory=WaitClock)
    penalized: bool = field(init=False)
    adjusted: bool = field(init=False)
    plain: bool = field(init=False)
    _whole_text: Detokenizer | None = field(init=False)
    _end_ids: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        params = self.params
        penalties = params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
        self.penalized = bool(penalties or params.logit_bias)
        self.adjusted = self.penalized or self.rules is not None or self.watermark is not None
        parsed = self.matcher is not None or self.reasoning_parser is not None
        self.plain = not (self.adjusted or parsed or params.logprobs is not None)
        self._whole_text = None if parsed or self.tool_parser is not None else self.text.unstoppable
        self._end_ids = (
            self.eos_token_ids.union(params.stop_token_ids) if params.stop_token_ids else self.eos_token_ids
        )

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
        """True while it computes its prompt, or recomputes tokens after a preemption."""
        return self.num_uncomputed_tokens > 1 or self.num_output_tokens == 0

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None

    @property
    def forced_token(self) -> int | None:
        """The token that must come next; None if the model chooses it."""
        return None if self.reasoning_parser is None else self.reasoning_parser.forced_token

    @property
    def rank(self) -> int:
        return RANKS[self.priority]

    @property
    def urgency(self) -> tuple[int, int]:
        """Priority class, then arrival; the lowest runs first and is preempted last."""
        return self.rank, self.arrival

    @property
    def seats(self) -> int:
        """Number of seats that the sequence and its forks take."""
        return 1 + len(self.forks)

    def accept(self, token_id: int, logprobs: TokenLogprobs | None = None) -> Token:
        """Append the next output token, and set `finish_reason` if it is the last.

        Raises:
            EngineFailed: the grammar does not accept the token; nothing is appended.
            InvalidRequest: matching the grammar takes too long.
        """
        if self.matcher is not None and not self.matcher.accept(token_id):
            raise EngineFailed("the request's grammar does not accept a generated token")
        tokens = self.tokens
        tokens.append(token_id)
        goes_on = token_id not in self._end_ids and len(tokens) - self.num_prompt_tokens < self.max_tokens
        if goes_on and self._whole_text is not None:
            whole = self._whole_text.feed_whole(token_id)
            if whole is not None:  # nearly always
                return Token(self.choice, token_id, whole, None, logprobs)
        text, self.finish_reason, stop_reason = self._detokenize(token_id)
        if self.reasoning_parser is None and self.tool_parser is None:
            if self.finish_reason is None:
                return Token(self.choice, token_id, text, None, logprobs)
            return Token(self.choice, token_id, text, self.finish_reason, logprobs, stop_reason=stop_reason)
        reasoning, is_reasoning = "", False
        if (parser := self.reasoning_parser) is not None:
            reasoning, text = parser.feed(token_id, text, self.text.length, last=self.ended)
            is_reasoning = parser.in_reasoning
            if not self.params.include_reasoning:  # the tokens are counted, but not shown
                reasoning, logprobs = "", None if is_reasoning else logprobs
        calls: tuple[CallDelta, ...] = ()
        if self.tool_parser is not None:
            cut = token_id not in self.eos_token_ids
            text, calls = self.tool_parser.feed(text, last=self.ended, cut=cut)
            if self.finish_reason is FinishReason.STOP and self.tool_parser.has_call:
                self.finish_reason = FinishReason.TOOL_CALLS
        end = self.finish_reason
        return Token(self.choice, token_id, text, end, logprobs, calls, reasoning, is_reasoning, stop_reason)

    def _detokenize(self, token_id: int) -> tuple[str, FinishReason | None, StopReason | None]:
        """Return the text that the last token adds, and the finish reason if the choice ends with it.

        The third value is the token of `stop_token_ids` or the stop string that ends the choice, if one does.
        """
        params, count = self.params, len(self.tokens) - self.num_prompt_tokens
        may_stop = count > params.min_tokens  # by a string; `rules` forbids the tokens
        is_eos = token_id in self.eos_token_ids and not params.ignore_eos
        if is_eos or token_id in params.stop_token_ids:
            text = self.text.end_at(token_id, shown=params.include_stop_str_in_output)
            return text, FinishReason.STOP, None if is_eos else token_id
        text, stop = self.text.feed(token_id, may_stop=may_stop)
        if stop is not None:
            return text, FinishReason.STOP, stop
        if self.matcher is not None and self.matcher.finished:
            end = FinishReason.STOP
        elif count >= self.max_tokens:
            end = FinishReason.LENGTH
        else:
            return text, None, None
        rest, stop = self.text.flush(may_stop=may_stop)
        return text + rest, end if stop is None else FinishReason.STOP, stop
