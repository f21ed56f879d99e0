"""Fields of each kind of upstream server beyond OpenAI's fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from shared.models.upstream import ServerKind
from shared.protocol import DEFAULT_PROMPT_OPTIONS, SamplingParams

# Fields beyond OpenAI's, by the name that they have here too, with the values that mean nothing.
SAMPLING_EXTRAS = {
    name: getattr(SamplingParams(), name)
    for name in (
        "top_k",
        "min_p",
        "repetition_penalty",
        "ignore_eos",
        "min_tokens",
        "stop_token_ids",
        "include_stop_str_in_output",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "bad_words",
        "allowed_token_ids",
        "thinking_token_budget",
        "typical_p",
        "watermark",
    )
}
PROMPT_EXTRAS = {
    name: getattr(DEFAULT_PROMPT_OPTIONS, name)
    for name in (
        "add_generation_prompt",
        "continue_final_message",
        "add_special_tokens",
        "chat_template_kwargs",
        "documents",
        "truncate_prompt_tokens",
        "truncation_side",
    )
}
JSON_EXTRAS = ("chat_template_kwargs", "documents")  # JSON text here
NOT_VLLM = {"typical_p", "watermark"}
VLLM_EXTRAS = MappingProxyType({name: name for name in (*SAMPLING_EXTRAS, *PROMPT_EXTRAS) if name not in NOT_VLLM})


def _named(*names: str, **renamed: str) -> Mapping[str, str]:
    return MappingProxyType({name: name for name in names} | renamed)


@dataclass(frozen=True)
class Dialect:
    """Abilities of one kind of server.

    Attributes:
        extras: the server's names of the fields beyond OpenAI's that it takes; others are refused.
        explicit: fields that are sent at their defaults too, because the server has defaults of its own.
        continues: it continues a final message of the assistant (`continue_final_message`).
        token_ids: it returns token ids (`return_token_ids`), and separates prefix caches by `cache_salt`.
        reasoning: it takes the reasoning of earlier turns (`reasoning_content`).
        wide_seeds: it takes seeds of 64 bits.
        grammar: its field for a grammar.
        structured: it takes vLLM's `structured_outputs`.
    """

    extras: Mapping[str, str] = field(default_factory=lambda: VLLM_EXTRAS)
    explicit: frozenset[str] = frozenset()
    continues: bool = False
    token_ids: bool = False
    reasoning: bool = False
    wide_seeds: bool = False
    grammar: str | None = None
    structured: bool = False


_SAMPLING = frozenset(("temperature", "top_p", "top_k", "min_p", "repetition_penalty"))
DIALECTS: dict[ServerKind, Dialect] = {
    "vllm": Dialect(
        explicit=_SAMPLING, continues=True, token_ids=True, reasoning=True, wide_seeds=True, structured=True
    ),
    "sglang": Dialect(
        extras=_named(
            "top_k",
            "min_p",
            "repetition_penalty",
            "ignore_eos",
            "min_tokens",
            "stop_token_ids",
            "skip_special_tokens",
            "continue_final_message",
            "add_generation_prompt",
            "chat_template_kwargs",
        ),
        explicit=_SAMPLING,
        continues=True,
        reasoning=True,
        grammar="ebnf",
    ),
    "llamacpp": Dialect(
        extras=_named(
            "top_k",
            "min_p",
            "typical_p",
            "ignore_eos",
            "chat_template_kwargs",
            "continue_final_message",
            "add_generation_prompt",
            repetition_penalty="repeat_penalty",
        ),
        explicit=_SAMPLING,
        continues=True,
        reasoning=True,
        grammar="grammar",
    ),
    "other": Dialect(structured=True),
}
