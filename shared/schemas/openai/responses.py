"""OpenAI's responses, as we accept them. What we cannot honour is refused by name.

Reference: OpenAI API, "Create a model response".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from shared.errors import InvalidRequest
from shared.protocol import Message, PriorityClass, Request, SamplingParams
from shared.schemas.base import Body, asking_for_nothing
from shared.schemas.common_fields import Metadata, Priority, priority_class
from shared.schemas.openai.response_items import Input, Item, messages_of
from shared.schemas.openai.response_object import ResponseObject, TextConfig
from shared.schemas.openai.response_tools import ToolFields
from shared.schemas.openapi_bounds import Items, Short
from shared.schemas.parameter_fields import parameter_field

LOGPROBS = "message.output_text.logprobs"
# fields that OpenAI has and we do not, with the values that ask for nothing
REFUSED: dict[str, tuple[Any, ...]] = {
    "conversation": (None,),
    "prompt": (None,),
    "context_management": (None, []),
    "moderation": (None,),
    "image": (None,),
    "access_programs": (None,),
    "background_options": (None, {}, {"completion_window": "soonest"}),
    "prompt_cache_options": (None, {}),
}
WHY = {
    "conversation": "this server keeps no conversations: chain responses by previous_response_id",
    "prompt": "this server keeps no prompts: send instructions and input",
}
NOT_SUPPORTED = "this server does not support it: refused unless it asks for nothing"
Refused = Annotated[Any, Field(description="refused unless it asks for nothing")]
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


class ReasoningOptions(Body):
    """What asks for no reasoning."""

    effort: Literal["none"] | None = None
    summary: None = None
    generate_summary: None = None
    context: None = None
    mode: None = None


class ResponseStreamOptions(Body):
    include_obfuscation: bool | None = Field(None, description="accepted; nothing is padded")


class ResponseRequest(ToolFields):
    """The body of a response."""

    model: str
    input: Input = Field(description="a text of the user, or the items that come after the earlier ones")
    instructions: str | None = Field(None, description="a system message before all items; not carried over")
    previous_response_id: Short | None = Field(None, description="go on after a stored response of yours")
    max_output_tokens: int | None = parameter_field("max_tokens")
    temperature: float | None = parameter_field("temperature")
    top_p: float | None = parameter_field("top_p")
    top_logprobs: int | None = parameter_field("logprobs")
    include: Items[Includable] | None = Field(
        None, max_length=8, description="there are no others than logprobs to include"
    )
    reasoning: ReasoningOptions | None = Field(None, description="models here do not reason")
    stream: bool | None = Field(None, description="answer by server-sent events")
    stream_options: ResponseStreamOptions | None = Field(None, description="only with stream")
    background: bool | None = Field(None, description="answer at once; the response goes on without its client")
    store: bool | None = Field(None, description="keep it for response_ttl seconds after its end; default true")
    metadata: Metadata = Field(None, description="up to 16 texts of yours by name")
    truncation: Literal["disabled"] | None = Field(None, description="what is too long is refused")
    service_tier: Literal["auto", "default"] | None = Field(None, description="accepted: there is one tier")
    max_tool_calls: Annotated[int, Field(ge=1, lt=2**31)] | None = Field(
        None, description="accepted: it counts calls of built-in tools, and there are none"
    )
    user: str | None = parameter_field("user")
    safety_identifier: str | None = Field(None, max_length=512, description="told again, otherwise unused")
    prompt_cache_key: str | None = Field(None, max_length=512, description="told again, otherwise unused")
    prompt_cache_retention: Literal["in_memory", "24h"] | None = Field(None, description="accepted, unused")

    seed: int | None = parameter_field("seed")
    priority: Priority | None = parameter_field("priority", default="interactive, or standard in the background")
    timeout: float | None = parameter_field("timeout")

    conversation: Refused = None
    prompt: Refused = None
    context_management: Refused = None
    moderation: Refused = None
    image: Refused = None
    access_programs: Refused = None
    background_options: Refused = None
    prompt_cache_options: Refused = None

    _asks_for_nothing = asking_for_nothing(REFUSED, NOT_SUPPORTED, WHY)

    @property
    def stored(self) -> bool:
        return self.store is not False

    def check(self) -> None:
        """Raises InvalidRequest where fields contradict each other."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options: only allowed with stream", param="stream_options")
        if self.top_logprobs and LOGPROBS not in (self.include or ()):
            raise InvalidRequest(f"top_logprobs: only allowed with {LOGPROBS} in include", param="top_logprobs")
        if self.background and not self.stored:
            raise InvalidRequest("background: only allowed for a response that is stored", param="store")

    def to_request(self, tenant: str, items: Sequence[Item]) -> Request:
        """The draft that admission completes; `items` are the earlier ones and the body's."""
        messages = messages_of(items)
        if self.instructions is not None:
            messages.insert(0, Message("system", self.instructions))
        usual = PriorityClass.STANDARD if self.background else PriorityClass.INTERACTIVE
        return Request(
            id="",
            model=self.model,
            messages=tuple(messages),
            params=SamplingParams(
                max_tokens=self.max_output_tokens,
                temperature=_or_one(self.temperature),
                top_p=_or_one(self.top_p),
                structured_outputs=self.text.to_structured() if self.text else None,
                logprobs=(self.top_logprobs or 0) if LOGPROBS in (self.include or ()) else None,
            ),
            tools=self.to_tools(),
            priority=priority_class(self.priority) if self.priority else usual,
            tenant=tenant,
            user=self.user or "",
        )

    def to_object(self) -> ResponseObject:
        """What the response tells of its request; its id, time and state come with admission."""
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
            safety_identifier=self.safety_identifier,
            store=self.stored,
            text=TextConfig(self.told_format()),
            tool_choice=self.told_choice(),
            tools=self.told_tools(),
            temperature=_or_one(self.temperature),
            top_p=_or_one(self.top_p),
            top_logprobs=self.top_logprobs or 0,
            user=self.user,
            metadata=self.metadata or {},
        )


def _or_one(value: float | None) -> float:
    return 1.0 if value is None else value
