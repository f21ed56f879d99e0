"""Checks of a request against the limits of one engine."""

from __future__ import annotations

from itertools import chain

from shared.errors import ContextLengthExceeded, InvalidRequest
from workers.engine.echo import scored_tops
from workers.engine.interface import MAX_LOGPROBS, EngineRequest, check_vocabulary

MAX_PROMPT_SCORES = 2**19  # in one entry of the log: 20 MB of JSON


def check_request(request: EngineRequest, *, max_num_seqs: int, max_model_len: int, vocab_size: int) -> None:
    """Raise ContextLengthExceeded or InvalidRequest for a request that the engine could not finish."""
    prompt, params = request.prompt, request.params
    if not prompt:
        raise InvalidRequest("prompt must not be empty", param="prompt")
    if params.n > max_num_seqs:
        raise InvalidRequest(f"n must be at most {max_num_seqs} on this worker, got {params.n}", param="n")
    for name, value in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
        if value is not None and not 0 <= value <= MAX_LOGPROBS:
            raise InvalidRequest(f"{name} must be between 0 and {MAX_LOGPROBS}, got {value}", param=name)
    _check_scores(request)
    _check_length(request, max_model_len)
    check_vocabulary(chain(prompt, *request.resumed), vocab_size, "prompt")
    for token_id in params.logit_bias:
        if token_id >= vocab_size:
            raise InvalidRequest(
                f"logit_bias: token {token_id} is outside the vocabulary of {vocab_size}", param="logit_bias"
            )


def _check_scores(request: EngineRequest) -> None:
    top = scored_tops(request.params)
    scores = 0 if top is None else len(request.prompt) * (1 + top)
    if scores > MAX_PROMPT_SCORES:
        name = "logprobs" if request.params.prompt_logprobs is None else "prompt_logprobs"
        raise InvalidRequest(
            f"{name}: at most {MAX_PROMPT_SCORES} log-probabilities of a prompt may be asked for, got {scores}",
            param=name,
        )


def _check_length(request: EngineRequest, max_model_len: int) -> None:
    prompt, max_tokens = len(request.prompt), request.params.max_tokens
    total = prompt + (max_tokens or 1)
    if total > max_model_len:
        raise ContextLengthExceeded(
            f"this model's maximum context length is {max_model_len} tokens, but the request asks for {total}: "
            f"{prompt} in the prompt and {max_tokens or 'at least 1'} in the answer",
            param="max_tokens" if max_tokens else "messages",
        )
