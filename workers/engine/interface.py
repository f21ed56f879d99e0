"""Interface between a worker and its engine: requests, outputs and the methods of an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from shared.errors import ContextLengthExceeded, EngineFailed, HeadraceError
from shared.models.worker_registry import Task
from shared.protocol import (
    DEFAULT_PROMPT_OPTIONS,
    CallDelta,
    EncoderWork,
    Message,
    PriorityClass,
    PromptOptions,
    Request,
    Result,
    SamplingParams,
    Structured,
    Token,
    Tools,
    Usage,
)
from workers.engine.pair_form import PairForm
from workers.engine.stats import EngineStats
from workers.engine.waits import EngineWaits

if TYPE_CHECKING:  # the scripted engine runs without torch
    from torch import Tensor

    from workers.engine.lora.weights import AdapterWeights

MAX_LOGPROBS = 20  # most likely tokens that a request may ask for with each token


class EngineLost(EngineFailed):
    """Raised when the engine has lost a process that it needs: it ends, and its requests go to other workers."""


class Matcher(Protocol):
    """State of a grammar after the tokens of one choice.

    The state depends on the tokens alone: a new matcher that accepted the same tokens is in the same state, so
    another worker can continue the choice.
    """

    @property
    def finished(self) -> bool:
        """True if nothing may follow: the choice ends with the last accepted token."""

    def accept(self, token_id: int) -> bool:
        """Accept the next token, including end-of-text. Return False if the grammar does not allow it."""

    def fill(self, bitmask: Tensor, row: int) -> None:
        """Set the bits of the tokens that may follow, including end-of-text, in one row of a mask.

        Called while no token is being accepted, possibly in another thread.

        Args:
            bitmask: [rows, vocab / 32] int32, one bit per token.
        """

    def forced_tokens(self) -> list[int]:
        """Return the tokens that must follow, whatever the model draws; empty if there is a choice.

        They are the usual tokens of the text that must follow, up to where it may continue in another way.
        """


class LogitsRules(Protocol):
    """Rules of one request on the tokens of its choices. They depend on the tokens alone, as a Matcher does."""

    def apply(self, row: Tensor, tokens: list[int], num_prompt_tokens: int) -> None:
        """Set the logits of the tokens that must not follow `tokens` to minus infinity, in place.

        Args:
            row: [vocab] float32.
            tokens: prompt and output.
        """


class ToolParser(Protocol):
    """Incremental parser of the tool calls in a choice's text. Its state depends on that text alone."""

    @property
    def has_call(self) -> bool:
        """True once a call is complete."""

    def feed(self, text: str, *, last: bool, cut: bool) -> tuple[str, tuple[CallDelta, ...]]:
        """Parse more text. Return the text outside of calls, and the additions to calls.

        `last` marks the end; `cut`: the model did not end the answer with this text.
        """


@dataclass(frozen=True)
class Source:
    """A request as it was queued, and the tokens of its answer that earlier runs logged."""

    request: Request
    logged: tuple[Token, ...] = ()


@dataclass(frozen=True)
class EngineRequest:
    """One request, tokenized.

    Attributes:
        prompt: token ids, at least one.
        prompt_param: the field of the request that the prompt comes from, for errors.
        resumed: for each choice, the token ids that earlier runs emitted. Generation continues after them and
            returns new tokens only, with the same text as in an uninterrupted run.
        priority, tenant, due: decide which requests run first when not all can; `due` is in seconds.
        prefix_salt: only requests with the same salt share the computed beginning of their prompts.
        work: what an encoder returns for its inputs.
        lengths: lengths of the inputs of an encoder, which are joined in `prompt`.
        second_starts: for each input that is a pair of texts, where the tokens of the second one, of type 1, begin;
            empty if the inputs are single texts.
        bad_words: token ids of each form of the words that the answer must not contain.
        matcher: builds the matcher of one choice; it is then fed with the choice's resumed tokens.
        tool_parser: builds the tool call parser of one choice in the same way.
        separates_reasoning: the reasoning of the model is kept apart from the text of the answer.
        adapter: the LoRA adapter to compute with.
        source: the request and the tokens that were logged, for a runtime that takes text instead of token ids.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    resumed: tuple[tuple[int, ...], ...] = ()
    priority: PriorityClass = PriorityClass.STANDARD
    tenant: str = "default"
    due: float = 0.0
    prefix_salt: bytes = b""
    work: EncoderWork | None = None
    lengths: tuple[int, ...] = ()
    second_starts: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    prompt_param: str = "prompt"
    matcher: Callable[[], Matcher] | None = None
    tool_parser: Callable[[], ToolParser] | None = None
    separates_reasoning: bool = False
    adapter: AdapterWeights | None = None
    source: Source | None = None

    def max_output_tokens(self, max_model_len: int) -> int:
        """Return how many tokens a choice may have: `max_tokens`, or what the prompt leaves of the context."""
        left = max_model_len - len(self.prompt)
        return left if self.params.max_tokens is None else min(self.params.max_tokens, left)


class EngineOutput(msgspec.Struct, frozen=True):
    """Output of one step for one request: a struct, which is created for each token faster than a dataclass.

    Attributes:
        finished: True if no choice is left running.
        error: the error that ended the request.
        prompt: the echoed prompt, sent with the first token, or without one if none is generated, if the request
            asks for it.
        cached_tokens: how many of the prompt's tokens were found in the prefix cache when the request started, sent
            at least with its first tokens.
        result: the result of a request for something other than text, sent at its end.
        usage: counts of a runtime that counts the tokens itself, sent at the end.
        waits: waits of the run, sent with its first tokens and with those after a preemption.
    """

    job_id: str
    tokens: tuple[Token, ...] = ()
    finished: bool = False
    error: HeadraceError | None = None
    prompt: tuple[Token, ...] = ()
    cached_tokens: int = 0
    result: Result | None = None
    usage: Usage | None = None
    waits: EngineWaits | None = None


def too_long(size: int, unit: str, most_tokens: int, param: str) -> ContextLengthExceeded:
    """Return the error for a text of `size` units that cannot fit a context of `most_tokens`."""
    return ContextLengthExceeded(
        f"this model's maximum context length is {most_tokens} tokens; a text of {size} {unit} has more than that",
        param=param,
    )


class Encoder(Protocol):
    """Tokenizer that may be used from any thread. Raises InvalidRequest for text that it cannot encode."""

    @property
    def vocab_size(self) -> int: ...

    def encode(
        self, text: str, *, special: bool = True, most_tokens: int | None = None, param: str = "prompt"
    ) -> list[int]:
        """Tokenize a text.

        Args:
            special: add the special tokens that the tokenizer puts around a plain text.
            most_tokens: raise ContextLengthExceeded, without tokenizing, for a text that certainly has more.
            param: the request's field that errors name.
        """

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Tools | None = None,
        options: PromptOptions = DEFAULT_PROMPT_OPTIONS,
        *,
        most_tokens: int | None = None,
    ) -> list[int]:
        """Render messages with the chat template, and tokenize them. The texts of messages, tools, documents and
        template variables become no control tokens.

        Args:
            options: those of truncation are left to the caller.
            most_tokens: see `encode`.
        """

    def pair_form(self) -> PairForm:
        """Return what the tokenizer puts around and between the two texts of a pair."""

    def text_form(self) -> tuple[Sequence[int], Sequence[int]]:
        """Return the special tokens that the tokenizer puts before and after a plain text."""

    def encode_infilling(
        self, prefix: str, suffix: str, *, special: bool = True, most_tokens: int | None = None
    ) -> list[int]:
        """Tokenize a text with a gap for the answer, in the model's fill-in-the-middle form.

        Raises InvalidRequest if it has none.
        """

    def bad_word_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Return the token ids of each word at the beginning of a text, and those after a space if they differ.

        As vLLM does, the form after a space counts only if it has as many tokens and another first one.
        """

    def decode_all(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, including special tokens."""

    def entry(self, token_id: int) -> str:
        """Return a token as the vocabulary spells it."""

    def token_texts(self, ids: list[int]) -> list[str]:
        """Return the text that each token, of at least one, adds to the text of all, including special tokens."""

    def describe(self) -> dict[str, Any]:
        """Return the tokenizer's configuration as JSON values, with the fields of tokenizer_config.json."""


class ConstraintSpec(msgspec.Struct, frozen=True):
    """Required form of an answer: `structured` output, or text that may call `tools`.

    With both, the answer is either structured output or calls. If a tool must be called, it is calls alone.
    """

    structured: Structured | None
    tools: Tools | None = None

    @property
    def param(self) -> str:
        """Name of the request's field to blame in errors."""
        return (self.structured or self.tools or Structured()).param


@dataclass(frozen=True)
class Constraint:
    """Compiled constraint of an answer: builds the matcher and the tool call parser of each choice."""

    matcher: Callable[[], Matcher]
    tool_parser: Callable[[], ToolParser] | None = None


class ConstraintCompiler(Protocol):
    """Compiler of constraints; may be called from any thread."""

    def start(self, form: ConstraintSpec) -> Future[Constraint]:
        """Compile a grammar, or find it in the cache.

        The future always completes, possibly late: with InvalidRequest if the grammar does not compile within the
        limits.
        """


class Generator(Protocol):
    """Interface of an engine. One thread makes all calls, except those of `tokenizer` and `constraints`."""

    @property
    def tokenizer(self) -> Encoder | None:
        """Tokenizer of the prompts; None for a runtime that takes the text of requests, with their constraints."""

    @property
    def constraints(self) -> ConstraintCompiler | None:
        """Compiler of constraints; None if the engine does not support them."""

    @property
    def task(self) -> Task:
        """Task of the model; a request for another one is refused before it reaches the engine."""

    @property
    def fingerprint(self) -> str:
        """Identity of the engine's computation: engines with equal fingerprints give equal answers."""

    @property
    def computation(self) -> Mapping[str, str]:
        """Return what the fingerprint was made of, by name; empty if it is not known."""

    @property
    def max_model_len(self) -> int: ...

    def add(self, request: EngineRequest) -> None:
        """Accept a request, which then always ends. Raises ContextLengthExceeded or InvalidRequest."""

    def abort(self, job_id: str) -> bool:
        """Drop a request and free its blocks before the next step. Return False if the id is unknown."""

    def step(self) -> list[EngineOutput]:
        """Compute the next tokens of as many sequences as the budgets allow.

        A worker is replaced if its step neither computes nor returns for `step_timeout` seconds. A step that waits
        for another process must return without outputs from time to time.
        """

    def abandon_when(self, urgent: Callable[[], bool]) -> None:
        """Let a step with batch-class work be abandoned without effect once `urgent` returns true."""

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Call `wake`, from any thread, when `has_work` or the fault in `stats` changes between two calls."""

    def has_work(self) -> bool: ...

    def stats(self) -> EngineStats: ...
