"""The table of request parameters: name, type, range, default, description, and the APIs that take each.

The range check (`request_limits`), the fields of bodies and their JSON Schemas (`shared.schemas`), the OpenAPI
document, docs/kafka, the comments of inference.proto and the table in docs/api.md follow from it. A batch takes
what the API of its lines takes; Kafka and gRPC take what jobs take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal

from shared.errors import InvalidRequest

MAX_TOKEN_ID = 2**31 - 1
MAX_SEED = 2**63 - 1
MAX_N = 128  # the setting max_n cannot exceed it
MAX_ANSWER_TOKENS = 131_072
MAX_STOP_STRINGS, MAX_STOP_CHARS = 16, 256
MAX_LOGIT_BIASES = 1_024
MAX_USER_CHARS = 256
MIN_REPETITION_PENALTY = 1e-5  # logits are divided by it, and must stay finite
MAX_SHOWN_CHARS = 32  # of a wrong number in an error: an integer may have thousands of digits


class Api(StrEnum):
    """The APIs with parameters, by their column in docs/api.md."""

    CHAT = "chats"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    EMBEDDINGS = "embeddings"
    JOBS = "jobs, gRPC, Kafka"
    LLM = "`LLM`"


Kind = Literal["integer", "number", "boolean", "string", "list of strings", "object"]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a request.

    Attributes:
        names: the fields that set it, for each API that takes it; empty means `name`.
        default: the value that its absence means; `default_text` says it where a value cannot.
        minimum, maximum: inclusive, unless `above_minimum`. Bounds on each value if `kind` is "object".
        max_items, max_chars: of a list or object; of a string, or each string of a list.
        setting: the setting that lowers `maximum`, or that is the maximum if there is no fixed one.
        limit: the attribute of `Limits` that holds the maximum at run time.
        sampling: a field of `protocol.SamplingParams`.
    """

    name: str
    kind: Kind
    description: str
    names: Mapping[Api, tuple[str, ...]] = field(repr=False)
    default: Any = None
    default_text: str = ""
    minimum: float | None = None
    maximum: float | None = None
    above_minimum: bool = False
    max_items: int | None = None
    max_chars: int | None = None
    setting: str | None = None
    limit: str | None = None
    sampling: bool = True

    def check_range(self, value: float, maximum: float | None = None) -> None:
        """Raise InvalidRequest for a number out of range; NaN is in no range.

        Args:
            maximum: the maximum at run time, where it is not the table's.
        """
        low, high = self.minimum, self.maximum if maximum is None else maximum
        assert low is not None and high is not None
        if not ((low < value if self.above_minimum else low <= value) and value <= high):
            shown = str(value)[:MAX_SHOWN_CHARS]
            raise InvalidRequest(f"{self.name} must be {self._range(high)}, got {shown}", param=self.name)

    @property
    def range_text(self) -> str:
        """The allowed values in words; empty if the type is the only bound."""
        parts = []
        if self.max_items is not None:
            items = "strings" if self.kind == "list of strings" else "entries"
            parts.append(f"at most {self.max_items} {items}")
        if self.max_chars is not None:
            parts.append(f"at most {self.max_chars} characters{' each' if self.max_items else ''}")
        if self.maximum is not None:
            parts.append(self._range(self.maximum))
            if self.setting:
                parts.append(f"and at most the setting {self.setting}")
        elif self.setting:
            parts.append(f"above 0 and at most the setting {self.setting}")
        return ", ".join(parts)

    @property
    def json_schema_bounds(self) -> Mapping[str, Mapping[str, float]]:
        """The bounds as JSON Schema keywords, by the JSON type that they apply to.

        The keys "items" and "additionalProperties" hold the bounds of a list's items and of an object's values.
        """
        numbers: dict[str, float] = {}
        if self.minimum is not None and self.maximum is not None:
            low = "exclusiveMinimum" if self.above_minimum else "minimum"
            numbers = {low: self.minimum, "maximum": self.maximum}
        chars = {} if self.max_chars is None else {"maxLength": self.max_chars}
        if self.kind == "object":
            items = {} if self.max_items is None else {"maxProperties": self.max_items}
            return {"object": items, "additionalProperties": numbers}
        if self.kind == "list of strings":
            return {"array": {"maxItems": self.max_items or 0}, "items": chars, "string": chars}
        return {self.kind: chars if self.kind == "string" else numbers}

    @property
    def default_shown(self) -> str:
        return self.default_text or _number(self.default)

    def text(self, default: object = None, maximum: float | None = None) -> str:
        """Return description, range and default in one line, for schemas and comments.

        Args:
            default, maximum: of one API, where they differ from the table's.
        """
        allowed = self.range_text if maximum is None else self._range(maximum)
        if default is None:
            default = self.default_shown
        parts = (self.description, allowed, f"default: {default}" if default else "")
        return "; ".join(part for part in parts if part)

    def _range(self, maximum: float) -> str:
        assert self.minimum is not None
        low, high = _number(self.minimum), _number(maximum)
        return f"above {low} and at most {high}" if self.above_minimum else f"between {low} and {high}"


def _number(value: object) -> str:
    """Return a value without exponent or trailing zeros, "" for None: 0.00001, 2, false."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _names(*apis: Api, **others: tuple[Api, ...]) -> Mapping[Api, tuple[str, ...]]:
    """Return the names in each API: the parameter's own in `apis`, and the given ones in `others`."""
    names: dict[Api, tuple[str, ...]] = dict.fromkeys(apis, ())
    for name, users in others.items():
        for api in users:
            names[api] = (*names.get(api, ()), name)
    return MappingProxyType(names)


_CHAT, _COMPLETIONS, _RESPONSES, _EMBEDDINGS, _JOBS, _LLM = Api
_GENERATING = _names(_CHAT, _COMPLETIONS, _JOBS, _LLM)
_GENERATING_AND_RESPONSES = _names(_CHAT, _COMPLETIONS, _RESPONSES, _JOBS, _LLM)

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
    _names(_EMBEDDINGS),
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
        _names(
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
        _names(logprobs=(_COMPLETIONS, _JOBS, _LLM), top_logprobs=(_CHAT, _RESPONSES)),
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
        _names(_COMPLETIONS),
        default=False,
    ),
    Parameter(
        "best_of",
        "integer",
        "refused unless equal to n: the server returns every choice it generates",
        _names(_COMPLETIONS),
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
        _names(_CHAT, _COMPLETIONS, _RESPONSES, _EMBEDDINGS, _JOBS),
        default_text="interactive; standard for jobs, gRPC and background responses; batch for Kafka",
        sampling=False,
    ),
    Parameter(
        "timeout",
        "number",
        "seconds from now after which the request ends unfinished",
        _names(_CHAT, _COMPLETIONS, _RESPONSES, _EMBEDDINGS, _JOBS),
        default_text="none",
        setting="max_timeout",
        sampling=False,
    ),
    Parameter(
        "deadline",
        "number",
        "like timeout, in seconds since the epoch by the server's clock",
        _names(_JOBS),
        default_text="none",
        sampling=False,
    ),
    Parameter(
        "user",
        "string",
        "your name for your end user, for limits and usage records",
        _names(_CHAT, _COMPLETIONS, _RESPONSES, _JOBS),
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
