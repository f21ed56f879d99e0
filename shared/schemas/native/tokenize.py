"""Bodies and results of /tokenize and /detokenize, in vLLM's form."""

from __future__ import annotations

from typing import Annotated

import msgspec
from pydantic import Field

from shared.errors import InvalidRequest
from shared.protocol import DescribeTokenizer, Detokenize, PriorityClass, Request, Tokenize
from shared.schemas.base import Body
from shared.schemas.common_fields import Messages
from shared.schemas.openapi_bounds import Items
from shared.schemas.parameter_fields import DefaultedModelName

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class TokenizeRequest(Body):
    """Body of POST /tokenize: a prompt, or messages."""

    model: DefaultedModelName = ""
    prompt: str | None = Field(None, description="a text; give either prompt or messages")
    messages: Messages | None = Field(None, description="a chat; give either messages or prompt")
    add_special_tokens: bool | None = Field(
        None,
        description="add the tokens that the tokenizer puts around a text; default: true for a prompt, false for "
        "messages, whose template adds its own",
    )
    add_generation_prompt: bool | None = Field(
        None, description="end messages with the start of the assistant's turn; default true"
    )
    return_token_strs: bool = Field(False, description="return each token as it is spelled in the vocabulary too")

    def to_request(self, tenant: str) -> Request:
        """Return the draft that admission completes. Raise InvalidRequest if fields contradict each other."""
        if self.messages is None and self.add_generation_prompt is not None:
            raise InvalidRequest(
                "add_generation_prompt is allowed with messages only", param="add_generation_prompt"
            )
        special = self.messages is None if self.add_special_tokens is None else self.add_special_tokens
        return Request(
            id="",
            model=self.model,
            prompt=self.prompt,
            messages=None if self.messages is None else tuple(message.to_message() for message in self.messages),
            work=Tokenize(special, self.add_generation_prompt is not False, self.return_token_strs),
            priority=PriorityClass.INTERACTIVE,
            tenant=tenant,
        )


class DetokenizeRequest(Body):
    """Body of POST /detokenize."""

    model: DefaultedModelName = ""
    tokens: Items[TokenId] = Field(description="token ids", min_length=1)

    def to_request(self, tenant: str) -> Request:
        return Request(
            id="",
            model=self.model,
            prompt=tuple(self.tokens),
            work=Detokenize(),
            priority=PriorityClass.INTERACTIVE,
            tenant=tenant,
        )


class Tokens(msgspec.Struct):
    """Token ids; `max_model_len` is the model's context in tokens, null while no worker has loaded it."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(msgspec.Struct):
    prompt: str


def describe_tokenizer(tenant: str, model: str) -> Request:
    """Return the draft of GET /tokenizer_info."""
    return Request(id="", model=model, work=DescribeTokenizer(), priority=PriorityClass.INTERACTIVE, tenant=tenant)


class TokenizerInfo(msgspec.Struct):
    """The fields of tokenizer_config.json, with others of the checkpoint; a token that it lacks is null."""

    tokenizer_class: str
    eos_token: str | None
    bos_token: str | None = None
    pad_token: str | None = None
    chat_template: str | None = None
