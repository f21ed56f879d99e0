"""The frozen types that cross a process: requests, and the events of their answers.

They are encoded as versioned JSON (msgspec), never as pickle. Every package may import this one; it imports only
`shared.errors`.
"""

from shared.protocol.codec import decode_event, decode_request, encode, encode_event, new_job_id
from shared.protocol.event import (
    CallDelta,
    ErrorInfo,
    FinishReason,
    PromptUsage,
    RequestState,
    Result,
    StopReason,
    Terminal,
    Token,
    TokenEvent,
    TokenLogprobs,
    Usage,
    count_reasoning,
)
from shared.protocol.request import (
    PROTOCOL_VERSION,
    DescribeTokenizer,
    Detokenize,
    Embed,
    Function,
    Message,
    PriorityClass,
    PromptOptions,
    Request,
    SamplingParams,
    Structured,
    Tokenize,
    ToolCall,
    Tools,
    Work,
)
from shared.protocol.waiting import Outlook, Ticket

__all__ = [
    "PROTOCOL_VERSION",
    "CallDelta",
    "DescribeTokenizer",
    "Detokenize",
    "Embed",
    "ErrorInfo",
    "FinishReason",
    "Function",
    "Message",
    "Outlook",
    "PriorityClass",
    "PromptOptions",
    "PromptUsage",
    "Request",
    "RequestState",
    "Result",
    "SamplingParams",
    "StopReason",
    "Structured",
    "Terminal",
    "Ticket",
    "Token",
    "TokenEvent",
    "TokenLogprobs",
    "Tokenize",
    "ToolCall",
    "Tools",
    "Usage",
    "Work",
    "count_reasoning",
    "decode_event",
    "decode_request",
    "encode",
    "encode_event",
    "new_job_id",
]
