"""Bodies and results of /tokenize and /detokenize, in vLLM's form."""

from __future__ import annotations

from typing import Annotated

import msgspec
from pydantic import Field

from shared.errors import InvalidRequest
from shared.protocol import DescribeTokenizer, Detokenize, PriorityClass, Request, Tokenize
from shared.schemas.base import Body
from shared.schemas.common_fields import ChatTemplateField, ParameterFields
from shared.schemas.messages import Messages, to_messages
from shared.schemas.openapi_bounds import Items
from shared.schemas.parameter_fields import BoundedObject, DefaultedModelName, parameter_field
from shared.schemas.tools import ToolFields

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class TokenizeRequest(ParameterFields, ChatTemplateField, ToolFields):
    """Body of POST /tokenize: a prompt, or messages, with the fields of a chat that change its tokens."""

    model: DefaultedModelName = ""
    prompt: str | None = Field(None, description="a text; give either prompt or messages")
    messages: Messages | None = Field(None, description="a chat; give either messages or prompt")
    add_special_tokens: bool | None = parameter_field("add_special_tokens")
    add_generation_prompt: bool | None = parameter_field("add_generation_prompt")
    continue_final_message: bool | None = parameter_field("continue_final_message")
    chat_template_kwargs: BoundedObject | None = parameter_field("chat_template_kwargs")
    documents: Items[BoundedObject] | None = parameter_field("documents")
    reasoning_effort: str | None = parameter_field("reasoning_effort")
    return_token_strs: bool = Field(False, description="return each token as it is spelled in the vocabulary too")

    def to_request(self, tenant: str) -> Request:
        """Return the draft that admission completes. Raise InvalidRequest if fields contradict each other."""
        if self.messages is None and self.add_generation_prompt is not None:
            raise InvalidRequest(
                "add_generation_prompt is allowed with messages only", param="add_generation_prompt"
            )
        return Request(
            id="",
            model=self.model,
            prompt=self.prompt,
            messages=None if self.messages is None else to_messages(self.messages),
            prompt_options=self.to_prompt_options(),
            tools=self.to_tools(),
            work=Tokenize(self.return_token_strs),
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
