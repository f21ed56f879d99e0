"""Encoding of a request's texts as token ids, and the answers of /tokenize, /detokenize and
/tokenizer_info.

Tokenizing runs beside the worker's event loop, so that no request waits for the text of another.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from shared.errors import InvalidRequest
from shared.models.worker_registry import Task
from shared.protocol import (
    DescribeTokenizer,
    Detokenize,
    EncoderWork,
    Message,
    PromptOptions,
    Request,
    Result,
    Tokenize,
)
from shared.validation.prompt_options import option_chars
from shared.validation.request_limits import Limits, check_request
from workers.engine.interface import Encoder
from workers.engine.request_check import check_vocabulary
from workers.preparation.encoded_request import EncodedRequest
from workers.preparation.input_encoding import encode_inputs
from workers.preparation.turn_truncation import encode_newest

MAX_INLINE_CHARS = 500  # encoding them takes no longer than waking a thread for it, about 0.3 ms
MAX_POOLED_CHARS = 65_536  # longer texts take more than 20 ms on one core
POOL_THREADS = 2  # for texts of up to MAX_POOLED_CHARS
WIDEST_LIMITS = Limits.widest()  # the widest that any settings of a front end allow


class PromptEncoder:
    """Encodes the requests of one worker: short texts inline, long texts one at a time, the others in a pool.

    The wait of a request therefore depends only on texts of its own size.

    Args:
        most_tokens: a text that is certain to have more is refused without tokenizing it.
        task: of the model.
    """

    def __init__(self, encoder: Encoder, most_tokens: int, task: Task) -> None:
        self._encoder = encoder
        self._most_tokens = most_tokens
        self._task = task
        self._pool = ThreadPoolExecutor(POOL_THREADS, "encode")
        self._long_thread = ThreadPoolExecutor(1, "encode-long")

    async def encode(self, request: Request) -> EncodedRequest:
        """Run `encode` without blocking the event loop. Errors of the encoder pass through."""
        length = text_length(request)
        if length <= MAX_INLINE_CHARS and request.work is None and request.tools is None:
            return encode(self._encoder, request, self._most_tokens, self._task)
        executor = self._pool if length <= MAX_POOLED_CHARS else self._long_thread
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(executor, encode, self._encoder, request, self._most_tokens, self._task)

    async def encode_bad_words(self, words: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """Return the token ids of each form of the words. Raises InvalidRequest for a word without tokens."""
        if sum(map(len, words)) <= MAX_INLINE_CHARS:
            return self._encoder.bad_word_ids(words)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._encoder.bad_word_ids, words)

    def close(self) -> None:
        """Cancel the texts that wait for a thread."""
        for executor in (self._pool, self._long_thread):
            executor.shutdown(wait=False, cancel_futures=True)


def text_length(request: Request) -> int:
    """Return the number of characters of a request's texts; token ids count as one each."""
    texts: list[str | tuple[int, ...]] = [request.prompt or ()]
    for message in request.messages or ():
        texts += [message.content, message.reasoning, *(call.arguments for call in message.tool_calls)]
    for function in request.tools.functions if request.tools else ():
        texts += [function.description, function.parameters]
    if isinstance(request.work, EncoderWork):
        texts += request.work.texts
    return sum(map(len, texts)) + option_chars(request.prompt_options)


def encode(encoder: Encoder, request: Request, most_tokens: int, task: Task = "generate") -> EncodedRequest:
    """Check a request and encode it.

    Raises:
        InvalidRequest: a field is out of bounds, cannot be encoded, or has no tokens.
        ContextLengthExceeded: a text is certain to have more than `most_tokens`.
    """
    check_request(request, WIDEST_LIMITS)  # another version of the front end may have admitted it
    request = msgspec.structs.replace(request, prompt_options=with_thinking_switch(request.prompt_options))
    work = request.work
    if isinstance(work, Tokenize):
        return EncodedRequest(result=_tokenize(encoder, request, work, most_tokens))
    if isinstance(work, Detokenize):
        return EncodedRequest(result=_detokenize(encoder, request, most_tokens))
    if isinstance(work, DescribeTokenizer):
        return EncodedRequest(result=Result(text=json.dumps(encoder.describe())))
    if isinstance(work, EncoderWork) and request.messages is None:
        return encode_inputs(encoder, request, work, most_tokens, task)
    ids = _prompt_ids(encoder, request, most_tokens)
    if not ids:
        raise InvalidRequest("the prompt must have at least one token", param="prompt")
    return EncodedRequest(tuple(ids), () if work is None else (len(ids),))


def with_thinking_switch(options: PromptOptions) -> PromptOptions:
    """Return the options with the variable by which templates like Qwen 3's turn reasoning off, for effort "none".

    Other templates ignore it. The variable of the request itself takes precedence.
    """
    if options.reasoning_effort != "none":
        return options
    variables = {"enable_thinking": False, **json.loads(options.chat_template_kwargs or "{}")}
    return msgspec.structs.replace(options, chat_template_kwargs=json.dumps(variables))


def _prompt_ids(encoder: Encoder, request: Request, most_tokens: int) -> list[int]:
    """Return the ids of a prompt, or of messages, without the oldest if these may be dropped to make room."""

    def encode_messages(messages: Sequence[Message]) -> list[int]:
        return _token_ids(encoder, msgspec.structs.replace(request, messages=tuple(messages)), most_tokens)

    if request.messages is None or not request.drop_oldest_turns:
        return _token_ids(encoder, request, most_tokens)
    answer = min(request.params.max_tokens or 1, most_tokens // 2)  # a longer answer is cut, not the whole prompt
    return encode_newest(request.messages, encode_messages, most_tokens - answer)


def _token_ids(encoder: Encoder, request: Request, most_tokens: int) -> list[int]:
    options = request.prompt_options
    if options.truncate_prompt_tokens is None:
        return _all_token_ids(encoder, request, most_tokens)
    return _truncated(_all_token_ids(encoder, request, None), request, most_tokens)


def _all_token_ids(encoder: Encoder, request: Request, most_tokens: int | None) -> list[int]:
    options = request.prompt_options
    if request.messages is not None:
        return encoder.encode_chat(request.messages, request.tools, options, most_tokens=most_tokens)
    if not isinstance(request.prompt, str):
        return list(request.prompt or ())
    special = options.add_special_tokens is not False
    if options.suffix is not None:
        return encoder.encode_infilling(request.prompt, options.suffix, special=special, most_tokens=most_tokens)
    return encoder.encode(request.prompt, special=special, most_tokens=most_tokens)


def _truncated(ids: list[int], request: Request, most_tokens: int) -> list[int]:
    """Return the tokens that the request's truncation keeps, as vLLM does."""
    options, keep = request.prompt_options, request.prompt_options.truncate_prompt_tokens
    assert keep is not None
    if keep == -1:
        keep = max(1, most_tokens - (request.params.max_tokens or 1))
    if keep >= len(ids):
        return ids
    return ids[:keep] if options.truncation_side == "right" else ids[len(ids) - keep :]


def _tokenize(encoder: Encoder, request: Request, work: Tokenize, most_tokens: int) -> Result:
    ids = _token_ids(encoder, request, most_tokens)
    if work.texts:
        return Result(tokens=tuple(ids), pieces=tuple(encoder.token_texts(ids)) if ids else ())
    return Result(tokens=tuple(ids), pieces=tuple(map(encoder.entry, ids)) if work.pieces else ())


def _detokenize(encoder: Encoder, request: Request, most_tokens: int) -> Result:
    ids = _all_token_ids(encoder, request, most_tokens)
    check_vocabulary(ids, encoder.vocab_size, "tokens")
    return Result(text=encoder.decode_all(ids))
