"""The frozen types that cross a process: requests, and the events of their answers.

They are encoded as versioned JSON (msgspec), never as pickle. Every package may import this one; it imports only
`shared.errors`.
"""

from shared.protocol.codec import decode_event, decode_request, encode, new_job_id
from shared.protocol.event import (
    CallDelta,
    ErrorInfo,
    FinishReason,
    RequestState,
    Result,
    Terminal,
    Token,
    TokenEvent,
    TokenLogprobs,
    Usage,
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
    "Request",
    "RequestState",
    "Result",
    "SamplingParams",
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
    "decode_event",
    "decode_request",
    "encode",
    "new_job_id",
]
