"""Body of OpenAI's responses. Fields that cannot be honoured are refused by name.

Reference: OpenAI API, "Create a model response".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field

from shared.errors import InvalidRequest
from shared.protocol import Message, PriorityClass, PromptOptions, Request, SamplingParams, Tokenize
from shared.schemas.base import Body, IgnoredObject, refuse_unless_neutral
from shared.schemas.common_fields import Metadata, PriorityField, TierFields
from shared.schemas.neutral_fields import NOT_SUPPORTED, Unsupported, Unused
from shared.schemas.openai.response_input import Input, ItemReference
from shared.schemas.openai.response_items import Item, to_messages
from shared.schemas.openai.response_object import Reasoning, ResponseObject, TextConfig
from shared.schemas.openai.response_tools import ToolFields
from shared.schemas.openapi_bounds import Items, Short
from shared.schemas.parameter_bodies import ResponseParameters
from shared.schemas.parameter_fields import ModelName, parameter_field

LOGPROBS = "message.output_text.logprobs"
# OpenAI's fields that are not supported, with their neutral values
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "conversation": (None,),
    "prompt": (None,),
    "moderation": (None,),
    "image": (None,),
    "access_programs": (None,),
    "background_options": (None, {}, {"completion_window": "soonest"}),
}
REASONS = {
    "conversation": "this server does not store conversations: chain responses with previous_response_id",
    "prompt": "this server does not store prompts: send instructions and input",
}
Includable = Literal[
    "message.output_text.logprobs",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
]
Summary = Literal["auto", "concise", "detailed"]


class ReasoningOptions(Body):
    """Reasoning options. Nothing summarizes reasoning: it is returned as the model writes it."""

    effort: str | None = parameter_field("reasoning_effort")
    summary: Summary | None = Field(None, description="returned, otherwise unused")
    generate_summary: Summary | None = Field(None, description="older name of summary")
    context: Unused = None
    mode: Unused = None


class ContextManagement(IgnoredObject):
    """Compaction of a long conversation; ignored: truncation auto drops its oldest turns."""


class ResponseStreamOptions(Body):
    include_obfuscation: bool | None = Field(None, description="accepted, but nothing is padded")


class ResponseRequest(ResponseParameters, ToolFields, TierFields):
    """Body of a response."""

    model: ModelName = ""
    input: Input = Field(description="the user's text, or the items that follow the earlier ones")
    instructions: str | None = Field(
        None, description="a system message before all items; later responses do not inherit it"
    )
    previous_response_id: Short | None = Field(None, description="continue after one of your stored responses")
    max_output_tokens: int | None = parameter_field("max_tokens")
    temperature: float | None = parameter_field("temperature")
    top_p: float | None = parameter_field("top_p")
    top_logprobs: int | None = parameter_field("logprobs", note=f"requires {LOGPROBS} in include")
    include: Items[Includable] | None = Field(
        None, max_length=8, description="only the log-probabilities can be included"
    )
    reasoning: ReasoningOptions | None = None
    stream: bool | None = Field(None, description="send the answer as server-sent events")
    stream_options: ResponseStreamOptions | None = Field(
        None, description="without effect unless the answer is streamed"
    )
    background: bool | None = Field(None, description="return at once; the response continues without its client")
    store: bool | None = Field(
        None, description="store the response for response_ttl seconds after its end; default true"
    )
    metadata: Metadata = Field(None, description="up to 16 texts of your own, by key")
    truncation: Literal["auto", "disabled"] | None = Field(
        None,
        description="auto drops the oldest turns of an input that is too long; default disabled: it is refused",
    )
    max_tool_calls: Annotated[int, Field(ge=1, lt=2**31)] | None = Field(
        None, description="accepted, without effect: it limits calls of built-in tools, which do not exist here"
    )
    user: str | None = parameter_field("user")
    safety_identifier: str | None = Field(None, max_length=512, description="returned, otherwise unused")
    prompt_cache_key: str | None = Field(None, max_length=512, description="returned, otherwise unused")
    prompt_cache_retention: Unused = None
    prompt_cache_options: Unused = None
    context_management: Items[ContextManagement] | None = Field(None, max_length=16)

    priority: PriorityField = parameter_field("priority", default="interactive, or standard in the background")
    timeout: float | None = parameter_field("timeout")

    conversation: Unsupported = None
    prompt: Unsupported = None
    moderation: Unsupported = None
    image: Unsupported = None
    access_programs: Unsupported = None
    background_options: Unsupported = None

    _refuse_unsupported = refuse_unless_neutral(UNSUPPORTED, NOT_SUPPORTED, REASONS)

    @property
    def stored(self) -> bool:
        return self.store is not False

    def check(self) -> None:
        """Raise InvalidRequest if fields contradict each other."""
        if self.top_logprobs and LOGPROBS not in (self.include or ()):
            raise InvalidRequest(f"top_logprobs is allowed with {LOGPROBS} in include only", param="top_logprobs")
        if self.background and not self.stored:
            raise InvalidRequest("store must not be false for a response in the background", param="store")

    def to_items(self) -> list[Item | ItemReference]:
        """Return the input; references are yet to be resolved."""
        return [each if isinstance(each, ItemReference) else each.to_item() for each in self.input]

    def to_request(self, tenant: str, items: Sequence[Item]) -> Request:
        """Return the draft that admission completes; `items` are the earlier ones, then the body's."""
        messages = to_messages(items)
        if self.instructions is not None:
            messages.insert(0, Message("system", self.instructions))
        usual = PriorityClass.STANDARD if self.background else PriorityClass.INTERACTIVE
        effort = self.reasoning.effort if self.reasoning else None
        return Request(
            id="",
            model=self.model,
            messages=tuple(messages),
            params=msgspec.structs.replace(
                self.to_params(),
                max_tokens=self.max_output_tokens,
                structured_outputs=self.text.to_structured() if self.text else None,
                logprobs=(self.top_logprobs or 0) if LOGPROBS in (self.include or ()) else None,
            ),
            prompt_options=PromptOptions(reasoning_effort=effort),
            drop_oldest_turns=self.truncation == "auto",
            tools=self.to_tools(),
            priority=self.class_of(self.priority, usual),
            tenant=tenant,
            user=self.user or "",
        )

    def to_count(self, tenant: str, items: Sequence[Item]) -> Request:
        """Return the draft that counts the tokens of the input."""
        draft = self.to_request(tenant, items)
        return msgspec.structs.replace(draft, work=Tokenize(), params=SamplingParams(), drop_oldest_turns=False)

    def to_object(self) -> ResponseObject:
        """Return the response object with the request's fields; admission sets its id, time and state."""
        return ResponseObject(
            status="queued" if self.background else "in_progress",
            background=bool(self.background),
            instructions=self.instructions,
            max_output_tokens=self.max_output_tokens,
            max_tool_calls=self.max_tool_calls,
            model=self.model,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            previous_response_id=self.previous_response_id,
            prompt_cache_key=self.prompt_cache_key,
            reasoning=self._returned_reasoning(),
            safety_identifier=self.safety_identifier,
            service_tier="flex" if self.flexible else "default",
            store=self.stored,
            text=TextConfig(self.returned_format(), (self.text and self.text.verbosity) or "medium"),
            tool_choice=self.returned_choice(),
            tools=self.returned_tools(),
            temperature=_or_one(self.temperature),
            top_p=_or_one(self.top_p),
            top_logprobs=self.top_logprobs or 0,
            truncation=self.truncation or "disabled",
            user=self.user,
            metadata=self.metadata or {},
        )

    def _returned_reasoning(self) -> Reasoning:
        given = self.reasoning
        return Reasoning(given.effort, given.summary or given.generate_summary) if given else Reasoning()


def _or_one(value: float | None) -> float:
    return 1.0 if value is None else value
