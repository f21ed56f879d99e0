"""Estimate of a request's tokens, which limits, budgets and queues count until a worker has tokenized it."""

from __future__ import annotations

from shared.protocol import EncoderWork, Message, Request, Score, Tools
from shared.validation.prompt_options import option_chars

CHARS_PER_TOKEN = 3
DEFAULT_ANSWER_TOKENS = 512  # of an answer without max_tokens


def token_estimate(request: Request) -> int:
    """Return the estimated tokens of prompt and answer, at least 1."""
    if isinstance(request.work, Score):  # a cross-encoder computes the query with each document
        return max(
            1, sum((len(query) + len(document)) // CHARS_PER_TOKEN for query, document in request.work.pairs)
        )
    if isinstance(request.work, EncoderWork) and request.messages is None:
        return max(1, sum(map(_estimated_length, request.work.texts)))
    if request.work is not None and not isinstance(request.work, EncoderWork):
        return 1
    if request.messages is not None:
        prompt = (message_chars(request.messages) + tool_chars(request.tools)) // CHARS_PER_TOKEN
    else:
        prompt = _estimated_length(request.prompt or ())
    prompt += option_chars(request.prompt_options) // CHARS_PER_TOKEN
    if request.work is not None:
        return max(1, prompt)
    max_tokens = request.params.max_tokens
    answer = DEFAULT_ANSWER_TOKENS if max_tokens is None else max_tokens
    return max(1, prompt + request.params.n * answer)


def _estimated_length(text: str | tuple[int, ...]) -> int:
    """Return the length in tokens: exact for token ids, estimated for a string."""
    return len(text) // CHARS_PER_TOKEN if isinstance(text, str) else len(text)


def message_chars(messages: tuple[Message, ...]) -> int:
    """Return the number of characters of messages and of their tool calls."""
    calls = (call for message in messages for call in message.tool_calls)
    texts = sum(len(message.content) + len(message.reasoning) for message in messages)
    return texts + sum(len(call.name) + len(call.arguments) for call in calls)


def tool_chars(tools: Tools | None) -> int:
    """Return the number of characters of the names, descriptions and schemas of all tools."""
    functions = tools.functions if tools else ()
    return sum(len(function.name) + len(function.description) + len(function.parameters) for function in functions)
