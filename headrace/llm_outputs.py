"""Answers of `headrace.LLM`, with vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shared.errors import HeadraceError
from shared.protocol import StopReason, Token
from shared.schemas.openai.logprobs import PromptLogprob, prompt_logprobs

if TYPE_CHECKING:
    from workers.engine.interface import EngineOutput, EngineRequest


@dataclass(frozen=True)
class Logprob:
    """Log-probability of one token; `rank` is 1 for the most likely, None beyond the requested number."""

    logprob: float
    rank: int | None
    decoded_token: str


@dataclass
class CompletionOutput:
    """One choice. `reasoning` is what a reasoning model thought before it answered a chat.

    `logprobs` has a mapping from token id for each token, if the parameters asked for them.

    `finish_reason` is "stop", "length", or "error" if the engine failed on the request. `stop_reason` is the token
    of `stop_token_ids` or the stop string that ended the choice.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    reasoning: str = ""
    stop_reason: StopReason | None = None

    def extend(self, token: Token) -> None:
        """Add the choice's next token."""
        self.text += token.text
        self.reasoning += token.reasoning
        self.token_ids.append(token.id)
        self.finish_reason = token.finish_reason and token.finish_reason.value
        self.stop_reason = token.stop_reason
        if self.logprobs is not None:
            self.logprobs.append(_logprobs(token))


@dataclass
class RequestOutput:
    """Answer to one prompt. `prompt` is None if token ids or messages were given.

    `prompt_logprobs` has a mapping from token id for each token of the prompt but the first, which has None, if the
    parameters asked for them. `num_cached_tokens` of the prompt's tokens were found in the prefix cache.

    With `error`, the engine failed on this prompt alone, and `outputs` has the tokens until then.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    error: HeadraceError | None = None
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int | None = None

    @classmethod
    def from_request(cls, request: EngineRequest, prompt: str | None) -> RequestOutput:
        """Return an answer without tokens."""
        with_logprobs = request.params.logprobs is not None
        n = request.params.n
        choices = [CompletionOutput(index, logprobs=[] if with_logprobs else None) for index in range(n)]
        return cls(request.id, prompt, list(request.prompt), choices)

    def extend(self, output: EngineOutput) -> None:
        """Add what one step computed, and its error."""
        if self.num_cached_tokens is None and output.error is None:
            self.num_cached_tokens = output.cached_tokens
        if any(token.logprobs is not None for token in output.prompt):
            found = prompt_logprobs(output.prompt)
            self.prompt_logprobs = [None if each is None else _by_id(each) for each in found]
        for token in output.tokens:
            self.outputs[token.choice].extend(token)
        self.error = output.error or self.error
        if output.finished:
            for choice in self.outputs:  # one without an end was cut by the error, or max_tokens is 0
                choice.finish_reason = choice.finish_reason or ("error" if self.error else "length")


def _by_id(found: dict[int, PromptLogprob]) -> dict[int, Logprob]:
    return {i: Logprob(each.logprob, each.rank, each.decoded_token) for i, each in found.items()}


def _logprobs(token: Token) -> dict[int, Logprob]:
    """Return the log-probabilities of the most likely tokens, in order, and of the drawn one.

    A token of reasoning that is not included has none.
    """
    if token.logprobs is None:
        return {}
    by_id = {i: Logprob(value, rank, piece) for rank, (i, value, piece) in enumerate(token.logprobs.top, 1)}
    by_id.setdefault(token.id, Logprob(token.logprobs.logprob, None, token.logprobs.piece))
    return by_id
