"""Bodies of TGI's API, with its rules and its words for what breaks them.

Reference: text-generation-inference, router/src/lib.rs and router/src/validation.rs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from producer_api.http.errors import TGI_GRAMMAR
from shared.errors import InvalidRequest
from shared.protocol import PriorityClass, PromptOptions, Request, SamplingParams, Structured, Tokenize
from shared.schemas.base import Body, refuse_unless_neutral
from shared.schemas.common_fields import Stop
from shared.schemas.neutral_fields import NOT_SUPPORTED, RequestIdField, Unsupported
from shared.schemas.parameter_fields import DefaultedModelName, parameter_field
from shared.settings import Settings
from shared.validation.parameters import BY_NAME
from shared.validation.sampling_parameters import MAX_INT64, MAX_N, MAX_TOKEN_ID

MAX_TOP_N_TOKENS = 5
MAX_SEED = 2**64 - 1
SHARE = {"exclusiveMinimum": 0, "exclusiveMaximum": 1}
MAX_FREQUENCY_PENALTY = 2.0
NEUTRAL_TEMPERATURE = 1.0  # TGI does not sample because of it alone


@dataclass(frozen=True)
class TgiLimits:
    """Bounds that depend on the settings and the model.

    Attributes:
        input_length: most tokens of a prompt; None while the model's context is not known.
    """

    best_of: int
    stop_sequences: int
    input_length: int | None

    @classmethod
    def from_settings(cls, settings: Settings, input_length: int | None) -> TgiLimits:
        return cls(min(settings.max_best_of, settings.max_n), settings.max_stop_sequences, input_length)


def _bounded(description: str, **bounds: float | None) -> Any:
    """Return a field of a number; `GenerateParameters.check` enforces its JSON Schema's bounds, in TGI's words."""

    def add(node: dict[str, Any]) -> None:
        for branch in node["anyOf"]:
            if branch["type"] != "null":
                branch.update(bounds)

    return Field(None, description=description, json_schema_extra=add)


class JsonGrammar(Body):
    """A JSON schema, as an object or as text."""

    type: Literal["json", "json_object"]
    value: dict[str, Any] | str

    def to_structured(self, param: str) -> Structured:
        schema = self.value if isinstance(self.value, str) else json.dumps(self.value)
        return Structured(json_schema=schema, strict=False, param=param)


class RegexGrammar(Body):
    """A regular expression for the whole answer."""

    type: Literal["regex"]
    value: str

    def to_structured(self, param: str) -> Structured:
        return Structured(regex=self.value, param=param)


class NamedSchema(Body):
    name: str | None = Field(None, description="for the client's own use")
    schema_: dict[str, Any] = Field(alias="schema", description="the JSON schema of the answer")
    strict: bool | None = Field(
        None,
        description="refuse a schema that cannot be enforced in full; otherwise enforce it as far as possible",
    )


class JsonSchemaGrammar(Body):
    type: Literal["json_schema"]
    value: NamedSchema

    def to_structured(self, param: str) -> Structured:
        return Structured(json_schema=json.dumps(self.value.schema_), strict=bool(self.value.strict), param=param)


Grammar = Annotated[JsonGrammar | RegexGrammar | JsonSchemaGrammar, Field(discriminator="type")]


class GenerateParameters(Body):
    """Parameters of an answer. Without `do_sample` and sampling parameters, it takes the likeliest tokens."""

    adapter_id: Unsupported = None
    best_of: int | None = _bounded("generate this many answers and return the likeliest", minimum=1, maximum=MAX_N)
    decoder_input_details: bool | None = Field(None, description="return the prompt's tokens; implies details")
    details: bool | None = Field(None, description="return the answer's tokens and the reason for its end")
    do_sample: bool | None = Field(None, description="draw tokens at random")
    frequency_penalty: float | None = _bounded(
        "subtracted from a token's logit for each time it was generated",
        minimum=-MAX_FREQUENCY_PENALTY,
        maximum=MAX_FREQUENCY_PENALTY,
    )
    grammar: Grammar | None = Field(None, description="constrain the answer to a JSON schema or regular expression")
    max_new_tokens: int | None = _bounded(
        "maximum tokens; default: what the context has room for", minimum=1, maximum=MAX_INT64
    )
    repetition_penalty: float | None = _bounded(
        "penalty on tokens of the prompt and the answer; 1 is no penalty", exclusiveMinimum=0, maximum=100
    )
    return_full_text: bool | None = Field(None, description="start the answer with the prompt")
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="the same seed, parameters and model give the same answer"
    )
    stop: Stop = parameter_field("stop", note="part of the text in this API")
    temperature: float | None = _bounded(
        "how random the choice of tokens is", exclusiveMinimum=0, maximum=BY_NAME["temperature"].maximum
    )
    top_k: int | None = _bounded("keep the k likeliest tokens", minimum=1, maximum=BY_NAME["top_k"].maximum)
    top_n_tokens: int | None = _bounded(
        "return this many of the likeliest tokens at each position", minimum=0, maximum=MAX_TOP_N_TOKENS
    )
    top_p: float | None = _bounded("keep the likeliest tokens up to this probability mass", **SHARE)
    truncate: int | None = _bounded("keep this many tokens of the prompt's end", minimum=1, maximum=MAX_TOKEN_ID)
    typical_p: float | None = _bounded("keep the most typical tokens up to this probability mass", **SHARE)
    watermark: bool | None = parameter_field("watermark")

    _refuse_unless_neutral = refuse_unless_neutral({"adapter_id": (None,)}, NOT_SUPPORTED)

    @property
    def detailed(self) -> bool:
        return bool(self.details or self.decoder_input_details)

    @property
    def choices(self) -> int:
        return 1 if self.best_of is None else self.best_of

    @property
    def samples(self) -> bool:
        """True if tokens are drawn at random."""
        warmed = self.temperature is not None and self.temperature != NEUTRAL_TEMPERATURE
        return bool(self.do_sample or warmed) or (self.top_k, self.top_p, self.typical_p) != (None, None, None)

    def check(self, limits: TgiLimits, *, stream: bool) -> None:
        """Raise InvalidRequest for the first rule that is broken, in TGI's order and words."""
        if stream and self.choices != 1:
            raise _wrong("best_of", "`best_of` != 1 is not supported when streaming tokens")
        if stream and self.decoder_input_details:
            raise _wrong(
                "decoder_input_details",
                "`decoder_input_details` == true is not supported when streaming tokens",
            )
        if limits.best_of == 1 and self.choices != 1:
            raise _wrong("best_of", "`best_of` != 1 is not allowed for this endpoint")
        if not 0 < self.choices <= limits.best_of:
            raise _wrong("best_of", f"`best_of` must be > 0 and <= {limits.best_of}. Given: {self.choices}")
        if self.choices > 1 and not self.samples and self.temperature is None:
            raise _wrong("best_of", "you must use sampling when `best_of` is > 1")
        self._check_sampling()
        self._check_lengths(limits)
        if self.seed is not None and self.choices > 1:
            raise _wrong("seed", "`seed` must not be set when `best_of` > 1")
        if self.top_n_tokens is not None and not 0 <= self.top_n_tokens <= MAX_TOP_N_TOKENS:
            raise _wrong(
                "top_n_tokens",
                f"`top_n_tokens` must be >= 0 and <= {MAX_TOP_N_TOKENS}. Given: {_shown(self.top_n_tokens)}",
            )

    def check_truncation(self, limits: TgiLimits) -> None:
        """Raise InvalidRequest for a `truncate` out of range."""
        if self.truncate is None:
            return
        most = limits.input_length
        if self.truncate <= 0 or (most is not None and self.truncate > most):
            bound = MAX_TOKEN_ID if most is None else most
            text = f"`truncate` must be strictly positive and less than {bound}. Given: {_shown(self.truncate)}"
            raise _wrong("truncate", text)

    def to_params(self, *, stream: bool) -> SamplingParams:
        """Return the parameters of the answer, without the seed, which admission assigns."""
        shows_tokens = stream or self.detailed or self.choices > 1
        return SamplingParams(
            max_tokens=self.max_new_tokens,
            temperature=(self.temperature or NEUTRAL_TEMPERATURE) if self.samples else 0.0,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            typical_p=1.0 if self.typical_p is None else self.typical_p,
            watermark=bool(self.watermark),
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            stop=tuple(self.stop or ()),
            include_stop_str_in_output=True,
            n=self.choices,
            best_of=self.best_of,
            logprobs=(self.top_n_tokens or 0) if shows_tokens else None,
            echo=bool(self.decoder_input_details),
            structured_outputs=None if self.grammar is None else self.grammar.to_structured(TGI_GRAMMAR),
        )

    def _check_sampling(self) -> None:
        if self.temperature is not None and self.temperature <= 0:
            raise _wrong("temperature", "`temperature` must be strictly positive")
        if self.repetition_penalty is not None and self.repetition_penalty <= 0:
            raise _wrong("repetition_penalty", "`repetition_penalty` must be strictly positive")
        if abs(self.frequency_penalty or 0.0) > MAX_FREQUENCY_PENALTY:
            raise _wrong("frequency_penalty", "`frequency_penalty` must be >= -2.0 and <= 2.0")
        for name in ("top_p", "typical_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise _wrong(name, f"`{name}` must be > 0.0 and < 1.0")
        if self.top_k is not None and self.top_k <= 0:
            raise _wrong("top_k", "`top_k` must be strictly positive")

    def _check_lengths(self, limits: TgiLimits) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens <= 0:
            raise _wrong("max_new_tokens", "`max_new_tokens` must be strictly positive")
        if len(self.stop or ()) > limits.stop_sequences:
            text = f"`stop` supports up to {limits.stop_sequences} stop sequences. Given: {len(self.stop or ())}"
            raise _wrong("stop", text)


ABSENT_PARAMETERS = GenerateParameters.model_validate(
    {"do_sample": True}
)  # TGI samples if a body has no `parameters` at all


class GenerateRequest(RequestIdField):
    """Body of an answer to a raw prompt."""

    model: DefaultedModelName = ""
    inputs: str = Field(description="the prompt")
    parameters: GenerateParameters | None = Field(None, description="of the answer")
    stream: bool | None = Field(
        None, description="send the answer token by token, where the path leaves the choice"
    )

    @property
    def given(self) -> GenerateParameters:
        return ABSENT_PARAMETERS if self.parameters is None else self.parameters

    @property
    def given_seed(self) -> int | None:
        """The seed as a signed integer; None if the server is to draw one."""
        seed = self.given.seed
        return seed if seed is None or seed < 2**63 else seed - 2**64

    def to_request(self, tenant: str, limits: TgiLimits, *, stream: bool) -> Request:
        """Return the draft that admission completes. Raise InvalidRequest for the first rule that is broken."""
        self.given.check(limits, stream=stream)
        return Request(
            id="",
            model=self.model,
            prompt=self._checked_inputs(limits),
            params=self.given.to_params(stream=stream),
            prompt_options=PromptOptions(truncate_prompt_tokens=self.given.truncate),
            refuse_overflow=True,
            priority=PriorityClass.INTERACTIVE,
            tenant=tenant,
        )

    def to_tokenization(self, tenant: str, limits: TgiLimits) -> Request:
        """Return the draft for the tokens of the prompt; the parameters do not change them."""
        return Request(
            id="",
            model=self.model,
            prompt=self._checked_inputs(limits),
            work=Tokenize(texts=True),
            priority=PriorityClass.INTERACTIVE,
            tenant=tenant,
        )

    def _checked_inputs(self, limits: TgiLimits) -> str:
        if not self.inputs:
            raise InvalidRequest("`inputs` cannot be empty", param="inputs")
        self.given.check_truncation(limits)
        return self.inputs


def _wrong(name: str, text: str) -> InvalidRequest:
    return InvalidRequest(text, param=f"parameters.{name}")


def _shown(number: int) -> str:
    return str(number)[:32]
