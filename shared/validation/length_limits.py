"""Bounds on the tokens of a prompt, and of prompt and answer together.

The rule is TGI's: an answer of up to 1024 tokens must fit as asked; a longer one is cut to what the prompt leaves.

Reference: text-generation-inference, router/src/validation.rs.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from shared.errors import ContextLengthExceeded
from shared.protocol import Request, SamplingParams
from shared.settings import Settings

MOST_RESERVED_TOKENS = 1024  # of an answer that must fit as asked


@dataclass(frozen=True)
class LengthLimits:
    """Bounds of one model.

    Attributes:
        context: tokens of the model's context.
        input_tokens, total_tokens: the settings max_input_length and max_total_tokens.
    """

    context: int
    input_tokens: int | None = None
    total_tokens: int | None = None

    @classmethod
    def from_settings(cls, settings: Settings, context: int) -> LengthLimits:
        return cls(context, settings.max_input_length, settings.max_total_tokens)

    @property
    def most_total(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.context if self.total_tokens is None else min(self.total_tokens, self.context)

    @property
    def most_input(self) -> int:
        """Most tokens of a prompt."""
        left = max(self.most_total - 1, 0)
        return left if self.input_tokens is None else min(self.input_tokens, left)

    def check(self, request: Request, prompt_tokens: int) -> None:
        """Raise ContextLengthExceeded for a prompt that is too long, or that leaves too little for its answer.

        Without settings, only requests that are to be refused rather than cut are checked: the engine checks the
        others against the context.
        """
        if not request.refuse_overflow and self.input_tokens is self.total_tokens is None:
            return
        asked = min(request.params.max_tokens or 0, MOST_RESERVED_TOKENS)
        strict = request.refuse_overflow or self.total_tokens is not None
        if strict and prompt_tokens + asked > self.most_total:
            raise self._too_many_tokens(request, prompt_tokens, asked)
        if prompt_tokens > self.most_input:
            raise self._too_long_prompt(request, prompt_tokens)

    def fit(self, params: SamplingParams, prompt_tokens: int) -> SamplingParams:
        """Return the parameters with at most as many `max_tokens` as the prompt leaves of the setting."""
        left = self.most_total - prompt_tokens
        if self.total_tokens is None or params.max_tokens is None or params.max_tokens <= left:
            return params
        return msgspec.structs.replace(params, max_tokens=left, min_tokens=min(params.min_tokens, left))

    def _too_many_tokens(self, request: Request, prompt_tokens: int, asked: int) -> ContextLengthExceeded:
        if request.refuse_overflow:
            text = (
                f"`inputs` tokens + `max_new_tokens` must be <= {self.most_total}. "
                f"Given: {prompt_tokens} `inputs` tokens and {asked} `max_new_tokens`"
            )
            return ContextLengthExceeded(text, param="inputs")
        name = _prompt_field(request)
        return ContextLengthExceeded(
            f"{name} and max_tokens must have at most {self.most_total} tokens together, "
            f"got {prompt_tokens} and {asked}",
            param=name,
        )

    def _too_long_prompt(self, request: Request, prompt_tokens: int) -> ContextLengthExceeded:
        if request.refuse_overflow:
            text = f"`inputs` must have less than {self.most_input} tokens. Given: {prompt_tokens}"
            return ContextLengthExceeded(text, param="inputs")
        name = _prompt_field(request)
        return ContextLengthExceeded(
            f"{name} must have at most {self.most_input} tokens, got {prompt_tokens}", param=name
        )


def _prompt_field(request: Request) -> str:
    return "prompt" if request.messages is None else "messages"
