"""Parameters that are no field of `protocol.SamplingParams`: of the prompt, the queue and the form of the answer.

`parameters` joins them to the whole table.
"""

from __future__ import annotations

from shared.validation.parameter_definition import Api, Parameter, names_by_api
from shared.validation.sampling_parameters import MAX_TOKEN_ID

MAX_DOCUMENTS = 1_024
MAX_TEMPLATE_VARIABLES = 64
MAX_CACHE_SALT_CHARS = 256
MAX_REASONING_EFFORT_CHARS = 32
MAX_USER_CHARS = 256

_CHAT, _COMPLETIONS, _RESPONSES, _EMBEDDINGS, _JOBS, _LLM = Api
_OF_MESSAGES = names_by_api(_CHAT, _JOBS)
_OF_PROMPTS = names_by_api(_CHAT, _COMPLETIONS, _JOBS)
_OF_TEXTS = names_by_api(_CHAT, _COMPLETIONS, _EMBEDDINGS, _JOBS)

DIMENSIONS = Parameter(
    "dimensions",
    "integer",
    "cut the vectors to their first numbers and normalize them again; at most the model's own length",
    names_by_api(_EMBEDDINGS),
    default_text="the model's own length",
    minimum=1,
    maximum=2**20,
)

REQUEST_PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "return_tokens_as_token_ids",
        "boolean",
        "show tokens in log-probabilities as token_id:ID",
        names_by_api(_CHAT, _COMPLETIONS),
        default=False,
    ),
    Parameter(
        "add_generation_prompt",
        "boolean",
        "end the chat with the start of the assistant's turn",
        _OF_MESSAGES,
        default=True,
    ),
    Parameter(
        "continue_final_message",
        "boolean",
        "continue the last message instead of starting a turn; requires add_generation_prompt false",
        _OF_MESSAGES,
        default=False,
    ),
    Parameter(
        "add_special_tokens",
        "boolean",
        "add the tokens that the tokenizer puts around a text",
        _OF_TEXTS,
        default_text="true for a prompt, false for messages, whose template adds its own",
    ),
    Parameter(
        "chat_template_kwargs",
        "object",
        "variables for the chat template",
        _OF_MESSAGES,
        default_text="none",
        off=({},),
        max_items=MAX_TEMPLATE_VARIABLES,
    ),
    Parameter(
        "documents",
        "list of objects",
        "documents for chat templates that use them",
        _OF_MESSAGES,
        default_text="none",
        off=((),),
        max_items=MAX_DOCUMENTS,
    ),
    Parameter(
        "reasoning_effort",
        "string",
        "how much to reason, for chat templates that know it; none turns reasoning off",
        _OF_MESSAGES,
        default_text="the template's",
        max_chars=MAX_REASONING_EFFORT_CHARS,
    ),
    Parameter(
        "truncate_prompt_tokens",
        "integer",
        "cut the prompt to this many tokens; -1 cuts it to what the context has room for",
        _OF_TEXTS,
        default_text="none",
        minimum=-1,
        maximum=MAX_TOKEN_ID,
    ),
    Parameter(
        "truncation_side",
        "string",
        "the side of the prompt that truncate_prompt_tokens cuts: left or right",
        _OF_TEXTS,
        default="left",
        default_text="left; right for embeddings",
    ),
    Parameter(
        "suffix",
        "string",
        "text that follows the completion, for models with a fill-in-the-middle form",
        names_by_api(_COMPLETIONS, _JOBS),
        default_text="none",
        off=("",),
    ),
    Parameter(
        "cache_salt",
        "string",
        "share cached prefixes only with requests of the same salt",
        _OF_PROMPTS,
        default_text="none",
        max_chars=MAX_CACHE_SALT_CHARS,
    ),
    DIMENSIONS,
    Parameter(
        "priority",
        "string",
        "the queue that the request waits in: interactive, standard or batch; or an integer as in vLLM: below 0 is "
        "interactive, 0 the default, and above 0 batch",
        names_by_api(_CHAT, _COMPLETIONS, _RESPONSES, _EMBEDDINGS, _JOBS),
        default_text="interactive; standard for jobs, gRPC and background responses; batch for Kafka",
    ),
    Parameter(
        "timeout",
        "number",
        "seconds from now after which the request ends unfinished",
        names_by_api(_CHAT, _COMPLETIONS, _RESPONSES, _EMBEDDINGS, _JOBS),
        default_text="none",
        setting="max_timeout",
    ),
    Parameter(
        "deadline",
        "number",
        "like timeout, in seconds since the epoch by the server's clock",
        names_by_api(_JOBS),
        default_text="none",
    ),
    Parameter(
        "user",
        "string",
        "your name for your end user, for limits and usage records",
        names_by_api(_CHAT, _COMPLETIONS, _RESPONSES, _JOBS),
        max_chars=MAX_USER_CHARS,
    ),
)
