"""Checks of a request against the limits of one engine."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from shared.errors import ContextLengthExceeded, InvalidRequest
from workers.engine.echo import scored_tops
from workers.engine.interface import MAX_LOGPROBS, EngineRequest

MAX_PROMPT_SCORES = 2**19  # in one entry of the log: 20 MB of JSON


def check_vocabulary(ids: Iterable[int], vocab_size: int, param: str) -> None:
    """Raise InvalidRequest, naming `param`, for the first id that is not in the vocabulary."""
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(f"token {token_id} is outside the vocabulary of {vocab_size}", param=param)


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
    check_prompt_length(request, max_model_len)
    check_vocabulary(chain(prompt, *request.resumed), vocab_size, "prompt")
    for name in ("logit_bias", "stop_token_ids", "allowed_token_ids"):
        for token_id in getattr(params, name):
            if token_id >= vocab_size:
                raise InvalidRequest(
                    f"{name}: token {token_id} is outside the vocabulary of {vocab_size}", param=name
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


def check_prompt_length(request: EngineRequest, max_model_len: int) -> None:
    """Raise ContextLengthExceeded for a prompt that leaves no room in the context for what the request asks for.

    A `max_tokens` that is larger than what it leaves is no error; see `EngineRequest.max_output_tokens`.
    """
    prompt, max_tokens = len(request.prompt), request.params.max_tokens
    answer = 0 if max_tokens == 0 else 1
    if prompt + answer > max_model_len:
        asked = "" if max_tokens is None else f"; max_tokens is {max_tokens}"
        raise ContextLengthExceeded(
            f"this model's maximum context length is {max_model_len} tokens, but the prompt has {prompt} and the "
            f"answer needs at least {answer}{asked}",
            param=request.prompt_param,
        )
