"""The limits that hold for a request on every transport, and the one validator that checks them.

It knows nothing of HTTP or of tokens: whether a prompt fits the context is the worker's to say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from shared.errors import ContextLengthExceeded, InvalidRequest
from shared.models.names import MODEL_NAME
from shared.models.worker_registry import ModelInfo, Task
from shared.protocol import (
    Detokenize,
    Embed,
    Function,
    Message,
    Request,
    SamplingParams,
    Structured,
    Tokenize,
    Tools,
)
from shared.settings import Settings
from shared.validation.json_schema import Schema, check_parts, check_schema, parse_schema

ROLES = ("system", "user", "assistant", "tool")
FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_SEED = 2**63 - 1
MIN_REPETITION_PENALTY = 1e-5  # logits are divided by it, and must stay finite
SCHEMAS = 256  # checked ones that are remembered, of 64 KiB at most
SHOWN = 32  # characters of a wrong number that are told again


@dataclass(frozen=True)
class Limits:
    """Bounds on one request; sizes in characters unless named otherwise, `timeout` in seconds."""

    prompt_chars: int = 1_000_000
    messages: int = 1_024
    prompts: int = 64  # requests of one HTTP request
    inputs: int = 2_048  # to embed, of one HTTP request
    max_tokens: int = 131_072
    n: int = 8
    stop_strings: int = 16
    stop_chars: int = 256
    logit_biases: int = 1_024
    grammar_chars: int = 65_536  # of a schema, a regular expression, an EBNF grammar, or all choices
    schema_depth: int = 64
    choices: int = 1_024
    tools: int = 128
    tool_chars: int = 262_144  # of all tools' names, descriptions and schemas
    tool_calls: int = 128  # of one message
    log_tokens: int = 262_144
    timeout: float = 86_400.0
    user_chars: int = 256

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(n=settings.max_n, log_tokens=settings.log_tokens, timeout=settings.max_timeout)


CHARS_PER_TOKEN = 3  # of prompts, until a worker has counted
UNSAID_TOKENS = 512  # of an answer whose length the request leaves open


def token_estimate(request: Request) -> int:
    """What a request will cost, in tokens of prompt and answer, as far as is known before it is tokenized."""
    if isinstance(request.work, Embed):
        return max(1, sum(_length(given) for given in request.work.inputs))
    if request.work is not None:
        return 1
    if request.messages is not None:
        prompt = (_message_chars(request.messages) + _tool_chars(request.tools)) // CHARS_PER_TOKEN
    else:
        prompt = _length(request.prompt or ())
    return max(1, prompt + request.params.n * (request.params.max_tokens or UNSAID_TOKENS))


def _length(given: str | tuple[int, ...]) -> int:
    """In tokens; of a text, as it is estimated."""
    return len(given) // CHARS_PER_TOKEN if isinstance(given, str) else len(given)


def check_request(request: Request, limits: Limits) -> None:
    """Raise InvalidRequest, naming the field, for the first thing in `request` that is out of bounds."""
    if not MODEL_NAME.fullmatch(request.model):
        raise InvalidRequest("model must be a name of at most 128 letters, digits and ._:/-", param="model")
    if len(request.user) > limits.user_chars:
        raise InvalidRequest(f"user has more than {limits.user_chars} characters", param="user")
    if "\0" in request.user:  # Postgres keeps no text with one, and so no record of it
        raise InvalidRequest("user must not hold the character U+0000", param="user")
    if isinstance(request.work, Embed):
        _check_inputs(request.work, limits)
        return
    if (request.messages is None) == (request.prompt is None):
        raise InvalidRequest("exactly one of messages and prompt is needed", param="messages")
    if request.messages is not None:
        _check_messages(request, limits)
    else:
        _check_prompt(request.prompt, limits)
    check_params(request.params, limits)
    if request.tools is not None:
        _check_tools(request, request.tools, limits)


def check_together(requests: Sequence[Request], limits: Limits) -> None:
    """As `check_request`, for requests that are asked together."""
    inputs = sum(len(each.work.inputs) for each in requests if isinstance(each.work, Embed))
    if inputs > limits.inputs:
        raise InvalidRequest(f"at most {limits.inputs} inputs are allowed", param="input")
    if len(requests) > limits.prompts:
        raise InvalidRequest(f"at most {limits.prompts} prompts are allowed", param="prompt")
    for request in requests:
        check_request(request, limits)


def check_served(request: Request, model: ModelInfo, limits: Limits) -> None:
    """Raise InvalidRequest, ContextLengthExceeded for what only the model and the clock can tell."""
    check_task(request, model.task)
    most, n = request.params.max_tokens, request.params.n
    if most is not None and 0 < model.max_model_len < most:
        raise ContextLengthExceeded(
            f"max_tokens is {most}, and the context of {model.name} has {model.max_model_len} tokens",
            param="max_tokens",
        )
    if most is not None and most * n > limits.log_tokens:
        raise InvalidRequest(
            f"n * max_tokens is {most * n}, and an answer may have {limits.log_tokens} tokens", param="max_tokens"
        )
    if request.deadline is not None and not 0 < request.deadline - request.created_at <= limits.timeout:
        raise InvalidRequest(
            f"timeout and deadline must end within the next {limits.timeout:.0f} seconds", param="timeout"
        )


def check_task(request: Request, task: Task | None) -> None:
    """Raise InvalidRequest for work that a model does not do. Any has a tokenizer."""
    if isinstance(request.work, Tokenize | Detokenize):
        return
    if task == ("generate" if isinstance(request.work, Embed) else "embed"):
        does, wanted = ("answers in text", "embeds") if task == "generate" else ("embeds", "answers in text")
        raise InvalidRequest(f"{request.model} {does}: choose a model that {wanted}", param="model")


def _check_inputs(work: Embed, limits: Limits) -> None:
    if not work.inputs or not all(work.inputs):
        raise InvalidRequest("input must not be empty", param="input")
    if len(work.inputs) > limits.inputs:
        raise InvalidRequest(f"at most {limits.inputs} inputs are allowed", param="input")
    if sum(len(given) for given in work.inputs) > limits.prompt_chars:
        raise InvalidRequest(f"input is longer than {limits.prompt_chars} in all", param="input")
    if work.dimensions is not None:
        _range("dimensions", work.dimensions, 1, 2**20)


def _check_messages(request: Request, limits: Limits) -> None:
    messages = request.messages or ()
    if not messages:
        raise InvalidRequest("messages must not be empty", param="messages")
    if len(messages) > limits.messages:
        raise InvalidRequest(f"at most {limits.messages} messages are allowed", param="messages")
    for i, message in enumerate(messages):
        if message.role not in ROLES:
            raise InvalidRequest(f"role must be one of {', '.join(ROLES)}", param=f"messages[{i}].role")
        if len(message.tool_calls) > limits.tool_calls:
            raise InvalidRequest(
                f"at most {limits.tool_calls} calls are allowed", param=f"messages[{i}].tool_calls"
            )
    _check_answers(messages)
    if _message_chars(messages) > limits.prompt_chars:
        raise InvalidRequest(f"messages hold more than {limits.prompt_chars} characters in all", param="messages")


def _message_chars(messages: tuple[Message, ...]) -> int:
    calls = (call for message in messages for call in message.tool_calls)
    return sum(len(message.content) for message in messages) + sum(len(c.name) + len(c.arguments) for c in calls)


def _check_answers(messages: tuple[Message, ...]) -> None:
    """A tool's message answers a call that came before it."""
    called: set[str] = set()
    for i, message in enumerate(messages):
        called.update(call.id for call in message.tool_calls)
        if message.role == "tool" and message.tool_call_id not in called:
            raise InvalidRequest(
                "no message before this one has a tool call of that id", param=f"messages[{i}].tool_call_id"
            )


def _tool_chars(tools: Tools | None) -> int:
    functions = tools.functions if tools else ()
    return sum(len(each.name) + len(each.description) + len(each.parameters) for each in functions)


def _check_tools(request: Request, tools: Tools, limits: Limits) -> None:
    if request.messages is None:
        raise InvalidRequest("tools go with messages", param="tools")
    _no_end(request.params, "tools")
    if not 0 < len(tools.functions) <= limits.tools:
        raise InvalidRequest(f"1 to {limits.tools} tools are allowed", param="tools")
    if _tool_chars(tools) > limits.tool_chars:
        raise InvalidRequest(f"tools hold more than {limits.tool_chars} characters in all", param="tools")
    names = [function.name for function in tools.functions]
    if len(set(names)) < len(names):
        raise InvalidRequest("two tools have the same name", param="tools")
    if tools.named is not None and tools.named not in names:
        raise InvalidRequest("tool_choice names a function that is not in tools", param="tool_choice")
    parts = 0
    for i, function in enumerate(tools.functions):
        parts += _check_function(function, f"tools[{i}].function", limits)
        check_parts(parts, f"tools[{i}].function.parameters")


def _check_function(function: Function, param: str, limits: Limits) -> int:
    """The subschemas of its parameters."""
    if not FUNCTION_NAME.fullmatch(function.name):
        raise InvalidRequest("a name has 1 to 64 letters, digits, - and _", param=f"{param}.name")
    if not function.parameters:
        return 0
    param = f"{param}.parameters"
    _sized(function.parameters, param, limits)
    return _check_json_schema(
        function.parameters, param, depth=limits.schema_depth, strict=function.strict, of_object=True
    )


@lru_cache(SCHEMAS)
def _check_json_schema(text: str, param: str, *, depth: int, strict: bool, of_object: bool = False) -> int:
    """The subschemas in a schema. Raises InvalidRequest.

    Remembered, since all prompts of one request share a schema, and requests tend to come with the same one.
    """
    schema: Schema = parse_schema(text, param, depth=depth)
    if of_object and (not isinstance(schema, dict) or schema.get("type", "object") != "object"):
        raise InvalidRequest("the schema of parameters is of type object", param=param)
    return check_schema(schema, param, strict=strict)


def check_structured(structured: Structured, limits: Limits) -> None:
    """Raise InvalidRequest for what an answer cannot be held to; the grammar itself is read by the worker."""
    param = structured.param
    kinds = (
        structured.json_schema,
        structured.json_object,
        structured.regex,
        structured.choice,
        structured.grammar,
    )
    if sum(bool(kind) for kind in kinds) != 1:
        raise InvalidRequest("one of json, json_object, regex, choice and grammar is needed", param=param)
    if structured.json_schema is not None:
        _sized(structured.json_schema, param, limits)
        _check_json_schema(structured.json_schema, param, depth=limits.schema_depth, strict=structured.strict)
    for text in (structured.regex, structured.grammar):
        _sized(text or "", param, limits)
    if len(structured.choice) > limits.choices or not all(structured.choice):
        raise InvalidRequest(f"1 to {limits.choices} choices are allowed, none of them empty", param=param)
    _sized("".join(structured.choice), param, limits)


def _sized(text: str, param: str, limits: Limits) -> None:
    if len(text) > limits.grammar_chars:
        raise InvalidRequest(f"is longer than {limits.grammar_chars} characters", param=param)


def _no_end(params: SamplingParams, param: str) -> None:
    if params.ignore_eos:
        raise InvalidRequest(f"ignore_eos does not go with {param}, which end the answer", param="ignore_eos")


def _check_prompt(prompt: str | tuple[int, ...] | None, limits: Limits) -> None:
    if not prompt:
        raise InvalidRequest("prompt must not be empty", param="prompt")
    if len(prompt) > limits.prompt_chars:
        raise InvalidRequest(f"prompt is longer than {limits.prompt_chars}", param="prompt")


def check_params(params: SamplingParams, limits: Limits) -> None:
    """Raise InvalidRequest for the first sampling parameter that is out of range (NaN is always)."""
    _range("temperature", params.temperature, 0.0, 2.0)
    _range("top_p", params.top_p, 0.0, 1.0, above=True)
    _range("min_p", params.min_p, 0.0, 1.0)
    _range("presence_penalty", params.presence_penalty, -2.0, 2.0)
    _range("frequency_penalty", params.frequency_penalty, -2.0, 2.0)
    _range("repetition_penalty", params.repetition_penalty, MIN_REPETITION_PENALTY, 2.0)
    _range("top_k", params.top_k, 0, 1_000_000)
    _range("n", params.n, 1, limits.n)
    _range("seed", params.seed, 0, MAX_SEED)
    if params.logprobs is not None:
        _range("logprobs", params.logprobs, 0, 20)
    if params.max_tokens is not None:
        _range("max_tokens", params.max_tokens, 1, limits.max_tokens)
    if len(params.stop) > limits.stop_strings:
        raise InvalidRequest(f"at most {limits.stop_strings} stop strings are allowed", param="stop")
    for stop in params.stop:
        if not 0 < len(stop) <= limits.stop_chars:
            raise InvalidRequest(f"a stop string must have 1 to {limits.stop_chars} characters", param="stop")
    if len(params.logit_bias) > limits.logit_biases:
        raise InvalidRequest(f"at most {limits.logit_biases} tokens may have a bias", param="logit_bias")
    for token, bias in params.logit_bias.items():
        _range("logit_bias", token, 0, 2**31 - 1)
        _range("logit_bias", bias, -100.0, 100.0)
    if params.structured_outputs is not None:
        _no_end(params, params.structured_outputs.param)
        check_structured(params.structured_outputs, limits)


def _range(name: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    """`above` leaves out the low end. An int may have thousands of digits, which no float can tell."""
    ok = (low < value if above else low <= value) and value <= high  # NaN is neither
    if not ok:
        bound = f"above {low}" if above else f"at least {low}"
        raise InvalidRequest(f"{name} must be {bound} and at most {high}, not {str(value)[:SHOWN]}", param=name)
