"""The table of request parameters: name, type, range, default, description, and the APIs that take each.

The range check (`request_limits`), the fields of bodies and their JSON Schemas (`shared.schemas`), the OpenAPI
document, docs/kafka, the comments of inference.proto and the table in docs/api.md follow from it. A batch takes
what the API of its lines takes; Kafka and gRPC take what jobs take.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from shared.validation.parameter_definition import Api, Parameter, names_by_api

MAX_TOKEN_ID = 2**31 - 1
MAX_SEED = 2**63 - 1
MAX_N = 128  # the setting max_n cannot exceed it
MAX_ANSWER_TOKENS = 131_072
MAX_STOP_STRINGS, MAX_STOP_CHARS = 16, 256
MAX_LOGIT_BIASES = 1_024
MAX_USER_CHARS = 256
MIN_REPETITION_PENALTY = 1e-5  # logits are divided by it, and must stay finite

_CHAT, _COMPLETIONS, _RESPONSES, _EMBEDDINGS, _JOBS, _LLM = Api
_GENERATING = names_by_api(_CHAT, _COMPLETIONS, _JOBS, _LLM)
_GENERATING_AND_RESPONSES = names_by_api(_CHAT, _COMPLETIONS, _RESPONSES, _JOBS, _LLM)

LOGIT_BIAS = Parameter(
    "logit_bias",
    "object",
    "numbers to add to the logits of tokens, by token id",
    _GENERATING,
    default_text="none",
    minimum=-100,
    maximum=100,
    max_items=MAX_LOGIT_BIASES,
)
DIMENSIONS = Parameter(
    "dimensions",
    "integer",
    "cut the vectors to their first numbers and normalize them again; at most the model's own length",
    names_by_api(_EMBEDDINGS),
    default_text="the model's own length",
    minimum=1,
    maximum=2**20,
    sampling=False,
)

PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "max_tokens",
        "integer",
        "maximum number of tokens in a choice",
        names_by_api(
            max_tokens=(_CHAT, _COMPLETIONS, _JOBS, _LLM),
            max_completion_tokens=(_CHAT,),
            max_output_tokens=(_RESPONSES,),
        ),
        default_text="what the context has room for",
        minimum=1,
        maximum=MAX_ANSWER_TOKENS,
        limit="max_tokens",
    ),
    Parameter(
        "temperature",
        "number",
        "how random the choice of tokens is; 0 always takes the most likely token",
        _GENERATING_AND_RESPONSES,
        default=1.0,
        minimum=0,
        maximum=2,
    ),
    Parameter(
        "top_p",
        "number",
        "keep the most likely tokens up to this probability mass",
        _GENERATING_AND_RESPONSES,
        default=1.0,
        minimum=0,
        maximum=1,
        above_minimum=True,
    ),
    Parameter(
        "top_k",
        "integer",
        "keep the k most likely tokens; 0 keeps all",
        _GENERATING,
        default=0,
        minimum=0,
        maximum=1_000_000,
    ),
    Parameter(
        "min_p",
        "number",
        "drop tokens less likely than this share of the most likely token's probability",
        _GENERATING,
        default=0.0,
        minimum=0,
        maximum=1,
    ),
    Parameter(
        "presence_penalty",
        "number",
        "subtracted from the logit of each token generated so far (OpenAI's definition)",
        _GENERATING,
        default=0.0,
        minimum=-2,
        maximum=2,
    ),
    Parameter(
        "frequency_penalty",
        "number",
        "subtracted from a token's logit for each time it was generated (OpenAI's definition)",
        _GENERATING,
        default=0.0,
        minimum=-2,
        maximum=2,
    ),
    Parameter(
        "repetition_penalty",
        "number",
        "penalty on tokens of the prompt and the answer (transformers' definition); 1 is no penalty",
        _GENERATING,
        default=1.0,
        minimum=MIN_REPETITION_PENALTY,
        maximum=2,
    ),
    Parameter(
        "stop",
        "list of strings",
        "strings that end a choice and are not part of it",
        _GENERATING,
        default=(),
        default_text="none",
        max_items=MAX_STOP_STRINGS,
        max_chars=MAX_STOP_CHARS,
    ),
    Parameter(
        "seed",
        "integer",
        "the same seed, parameters and model give the same answer",
        _GENERATING_AND_RESPONSES,
        default=0,
        default_text="drawn by the server",
        minimum=0,
        maximum=MAX_SEED,
    ),
    Parameter(
        "n",
        "integer",
        "number of choices",
        _GENERATING,
        default=1,
        minimum=1,
        maximum=MAX_N,
        setting="max_n",
        limit="n",
    ),
    Parameter(
        "ignore_eos",
        "boolean",
        "continue after the model's end-of-text token",
        _GENERATING,
        default=False,
    ),
    LOGIT_BIAS,
    Parameter(
        "logprobs",
        "integer",
        "return the log-probability of each token, and those of the k most likely tokens",
        names_by_api(logprobs=(_COMPLETIONS, _JOBS, _LLM), top_logprobs=(_CHAT, _RESPONSES)),
        default_text="none",
        minimum=0,
        maximum=20,
    ),
    Parameter(
        "structured_outputs",
        "object",
        "constrain the answer to a JSON schema, a regular expression, a choice or a grammar",
        _GENERATING,
        default_text="free text",
    ),
    Parameter(
        "echo",
        "boolean",
        "start each choice with its prompt",
        names_by_api(_COMPLETIONS),
        default=False,
    ),
    Parameter(
        "best_of",
        "integer",
        "refused unless equal to n: the server returns every choice it generates",
        names_by_api(_COMPLETIONS),
        default_text="n",
        minimum=1,
        maximum=MAX_N,
        sampling=False,
    ),
    DIMENSIONS,
    Parameter(
        "priority",
        "string",
        "the queue that the request waits in: interactive, standard or batch",
        names_by_api(_CHAT, _COMPLETIONS, _RESPONSES, _EMBEDDINGS, _JOBS),
        default_text="interactive; standard for jobs, gRPC and background responses; batch for Kafka",
        sampling=False,
    ),
    Parameter(
        "timeout",
        "number",
        "seconds from now after which the request ends unfinished",
        names_by_api(_CHAT, _COMPLETIONS, _RESPONSES, _EMBEDDINGS, _JOBS),
        default_text="none",
        setting="max_timeout",
        sampling=False,
    ),
    Parameter(
        "deadline",
        "number",
        "like timeout, in seconds since the epoch by the server's clock",
        names_by_api(_JOBS),
        default_text="none",
        sampling=False,
    ),
    Parameter(
        "user",
        "string",
        "your name for your end user, for limits and usage records",
        names_by_api(_CHAT, _COMPLETIONS, _RESPONSES, _JOBS),
        max_chars=MAX_USER_CHARS,
        sampling=False,
    ),
)
BY_NAME: Mapping[str, Parameter] = MappingProxyType({each.name: each for each in PARAMETERS})
RANGED: tuple[Parameter, ...] = tuple(
    each for each in PARAMETERS if each.sampling and each.kind in {"integer", "number"}
)


def fields(api: Api) -> Mapping[str, Parameter]:
    """Return the parameters that `api` takes, by the names of its fields."""
    return {name: each for each in PARAMETERS if api in each.names for name in each.names[api] or (each.name,)}
