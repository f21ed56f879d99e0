"""Form of an answer, as far as only its body asks for it: workers do not depend on it."""

from __future__ import annotations

from dataclasses import dataclass

from shared.schemas.openai.chat import ChatRequest
from shared.schemas.openai.completions import CompletionRequest


@dataclass(frozen=True)
class AnswerForm:
    """Form of an answer of OpenAI's APIs.

    Attributes:
        echo: begin each choice with its prompt; in a chat, with the last message if the answer continues its role.
        tokens_as_ids: show tokens in log-probabilities as token_id:ID.
        include_usage: end a stream with its usage.
        continuous_usage: send the usage so far with each chunk.
        logprobs: show log-probabilities, which may also serve to rank the choices.
        returned: number of choices of each prompt; if more were generated, those with the highest mean
            log-probability of their tokens, the best first.
    """

    echo: bool = False
    tokens_as_ids: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    logprobs: bool = False
    returned: int = 1

    @classmethod
    def from_body(cls, body: ChatRequest | CompletionRequest) -> AnswerForm:
        return cls(
            bool(body.echo),
            bool(body.return_tokens_as_token_ids),
            body.include_usage,
            body.continuous_usage,
            logprobs=body.logprobs is not None and body.logprobs is not False,
            returned=1 if body.n is None else body.n,
        )
