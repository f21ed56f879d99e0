"""Arguments of vLLM's SamplingParams for a choice.

Usually the sampler of the native engine chooses the tokens: a logits processor leaves vLLM one token to choose.
vLLM cannot run that processor with speculative decoding or several processes. Then it chooses the tokens itself,
and what it could not continue after a takeover is refused.
"""

from __future__ import annotations

from typing import Any

from shared.errors import InvalidRequest
from workers.engine.echo import scored_tops
from workers.engine.interface import EngineRequest
from workers.engine.sampling.rows import MIN_TEMPERATURE, noise_key
from workers.engine.sequence import Sequence
from workers.runtimes.vllm.choice import Choice

CHOICE = "headrace"  # key of a choice among the extra arguments
MIN_TOP_P = 1e-9  # vLLM refuses 0


def arguments_of(choice: Choice, *, native_sampling: bool) -> dict[str, Any]:
    """Return the arguments for a choice that continues after its tokens.

    Args:
        native_sampling: the processor of logits chooses the tokens.
    """
    sequence = choice.sequence
    arguments = _common_arguments(sequence)
    if native_sampling:
        return arguments | {"temperature": 0.0, "extra_args": {CHOICE: choice}}
    return arguments | _sampling_arguments(sequence)


def check_supported(request: EngineRequest) -> None:
    """Raise InvalidRequest for a request that vLLM's own sampler could not continue after a takeover.

    It knows the tokens of earlier runs only as part of the prompt.
    """
    params = request.params
    unsupported = {
        "typical_p": params.typical_p < 1.0,
        "presence_penalty": params.presence_penalty != 0,
        "frequency_penalty": params.frequency_penalty != 0,
        "watermark": params.watermark,
        "bad_words": bool(request.bad_words),
        "thinking_token_budget": params.thinking_token_budget is not None,
        "structured_outputs": params.structured_outputs is not None,
        "tools": request.matcher is not None or request.tool_parser is not None,
    }
    for name, is_used in unsupported.items():
        if is_used:
            raise InvalidRequest(
                f"{name} is not supported by a worker whose vLLM uses speculative decoding or several processes",
                param=name,
            )


def _common_arguments(sequence: Sequence) -> dict[str, Any]:
    params = sequence.params
    ends = set(params.stop_token_ids)
    if not params.ignore_eos:
        ends |= sequence.eos_token_ids
    return {
        "max_tokens": max(1, sequence.max_tokens - sequence.num_output_tokens),  # vLLM refuses 0
        "stop_token_ids": sorted(ends),
        "ignore_eos": True,  # the end-of-text tokens are among the stop tokens: vLLM has no tokenizer
        "detokenize": False,
        "logprobs": params.logprobs,
        "prompt_logprobs": None if sequence.echo is None else scored_tops(params),
    }


def _sampling_arguments(sequence: Sequence) -> dict[str, Any]:
    params, position = sequence.params, sequence.num_output_tokens
    high, low = noise_key(params.seed, sequence.choice, position)
    return {
        "temperature": 0.0 if params.temperature < MIN_TEMPERATURE else params.temperature,
        "top_k": params.top_k,
        "top_p": max(params.top_p, MIN_TOP_P),
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,  # on prompt and output alike
        "logit_bias": dict(params.logit_bias) or None,
        "allowed_token_ids": list(params.allowed_token_ids) or None,
        "min_tokens": max(0, params.min_tokens - position),
        "seed": high >> 1 << 32 | low,  # in 63 bits; another one after a takeover, so that no draw is repeated
    }
