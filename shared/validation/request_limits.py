"""The bounds on a request, and the validator that every transport uses to check them.

Whether a prompt fits the context is checked by the worker, which has the tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from shared.errors import InvalidRequest
from shared.models.names import MAX_MODEL_NAME_CHARS, MODEL_NAME
from shared.models.worker_registry import ModelInfo, Task
from shared.protocol import (
    DescribeTokenizer,
    Detokenize,
    Embed,
    EncoderWork,
    Function,
    Infer,
    Message,
    Pool,
    Request,
    SamplingParams,
    Score,
    Structured,
    Tokenize,
    Tools,
)
from shared.settings import Settings
from shared.settings.length_fields import MAX_CLIENT_BATCH_SIZE
from shared.validation.encoder_work import check_encoder_work
from shared.validation.grammar_text import check_grammar, check_regex
from shared.validation.json_schema.translation import check_subschema_count
from shared.validation.parameter_definition import MAX_SHOWN_CHARS
from shared.validation.parameters import LISTS, RANGED
from shared.validation.prompt_options import check_prompt_options, option_chars
from shared.validation.request_parameters import MAX_USER_CHARS
from shared.validation.sampling_parameters import (
    LOGIT_BIAS,
    MAX_ANSWER_TOKENS,
    MAX_LOGIT_BIASES,
    MAX_N,
    MAX_TOKEN_ID,
)
from shared.validation.schema_check import check_schema
from shared.validation.tensors import check_tensors
from shared.validation.token_estimate import message_chars, tool_chars

ROLES = ("system", "user", "assistant", "tool")
KINDS: Mapping[Task, str] = {
    "generate": "a text",
    "embed": "an embedding",
    "classify": "a classification",
    "predict": "a tensor",
}
_DEFAULTS = SamplingParams()
_RANGED = tuple((each, each.name, getattr(_DEFAULTS, each.name)) for each in RANGED)
FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


@dataclass(frozen=True)
class Limits:
    """Bounds on one request that are no parameter's own, or that a setting lowers. `timeout` is in seconds."""

    prompt_chars: int = 1_000_000
    messages: int = 1_024
    prompts: int = MAX_CLIENT_BATCH_SIZE  # in one HTTP request
    inputs: int = 2_048  # of an encoder, in one HTTP request
    n: int = 8  # of the setting max_n
    grammar_chars: int = 65_536  # of a schema, or all choices together
    choices: int = 1_024
    tools: int = 512
    tool_chars: int = 1_000_000  # of the names, descriptions and schemas of all tools together
    tool_calls: int = 128  # in one message
    log_tokens: int = 262_144  # in one answer, all choices together
    timeout: float = 86_400.0
    strict_fields: bool = False  # refuse unknown fields

    @classmethod
    def from_settings(cls, settings: Settings) -> Limits:
        return cls(
            prompts=settings.max_client_batch_size,
            n=settings.max_n,
            log_tokens=settings.log_tokens,
            timeout=settings.max_timeout,
            strict_fields=settings.strict_fields,
        )

    @classmethod
    def widest(cls) -> Limits:
        """Return the bounds that `check_request` may apply under any settings."""
        return cls(n=MAX_N)


def check_request(request: Request, limits: Limits) -> None:
    """Raise InvalidRequest, naming the field, for the first field of `request` that is out of bounds."""
    check_model_name(request.model)
    if len(request.user) > MAX_USER_CHARS:
        raise InvalidRequest(f"user must have at most {MAX_USER_CHARS} characters", param="user")
    if "\0" in request.user:  # Postgres cannot store it, so the usage record would be lost
        raise InvalidRequest("user must not contain the character U+0000", param="user")
    if isinstance(request.work, EncoderWork) and request.messages is None:
        check_encoder_work(request.work, inputs=limits.inputs, chars=limits.prompt_chars)
        check_prompt_options(request, limits.prompt_chars)
        return
    if isinstance(request.work, Infer):
        check_tensors(request.work)
        return
    if isinstance(request.work, DescribeTokenizer):
        return
    if (request.messages is None) == (request.prompt is None):
        raise InvalidRequest("exactly one of messages and prompt is required", param="messages")
    if request.messages is not None:
        _check_messages(request, limits)
    else:
        _check_prompt(request.prompt, limits)
    if len(request.recorded_prompt) > limits.prompt_chars:
        raise InvalidRequest(
            f"prompt_token_ids must have at most {limits.prompt_chars} entries", param="prompt_token_ids"
        )
    check_params(request.params, limits)
    check_prompt_options(request, limits.prompt_chars)
    if request.tools is not None:
        _check_tools(request, request.tools, limits)


def check_model_name(name: str) -> None:
    """Raise InvalidRequest for a name that no model can have."""
    if not name:
        raise InvalidRequest("model is required", param="model")
    if not MODEL_NAME.fullmatch(name):
        raise InvalidRequest(
            f"model must be a name of at most {MAX_MODEL_NAME_CHARS} letters, digits and ._:/-", param="model"
        )


def check_together(requests: Sequence[Request], limits: Limits) -> None:
    """Check the requests that one HTTP request asks for. Raise InvalidRequest as `check_request` does."""
    works = [request.work for request in requests]
    inputs = sum(len(work.inputs) for work in works if isinstance(work, Embed | Pool))
    documents = sum(len(work.documents) for work in works if isinstance(work, Score))
    if inputs > limits.inputs or documents > limits.inputs:
        name = requests[0].prompt_param
        raise InvalidRequest(f"{name} must have at most {limits.inputs} entries", param=name)
    if len(requests) > limits.prompts:
        raise InvalidRequest(f"prompt must have at most {limits.prompts} entries", param="prompt")
    for request in requests:
        check_request(request, limits)


def fit_to_model(request: Request, model: ModelInfo, limits: Limits) -> Request:
    """Return the request with at most as many `max_tokens` as are possible with the model.

    So limits, budgets and queues count what is possible instead of what was asked. The worker lowers it further, to
    what the prompt leaves. Raises InvalidRequest for what exceeds a bound that depends on the model or the clock.
    """
    check_task(request, model.task)
    request = lower_max_tokens(request, model)
    max_tokens, n = request.params.max_tokens, request.params.n
    if max_tokens is not None and max_tokens * n > limits.log_tokens:
        raise InvalidRequest(
            f"n * max_tokens must be at most {limits.log_tokens}, got {max_tokens * n}", param="max_tokens"
        )
    if request.deadline is not None and not 0 < request.deadline - request.created_at <= limits.timeout:
        raise InvalidRequest(
            f"timeout or deadline must be in the future and at most {limits.timeout:.0f} seconds ahead",
            param="timeout",
        )
    return request


def lower_max_tokens(request: Request, model: ModelInfo) -> Request:
    """Return the request with at most MAX_ANSWER_TOKENS, and what the model's context has if that is known."""
    params, most = request.params, min(model.max_model_len or MAX_ANSWER_TOKENS, MAX_ANSWER_TOKENS)
    if params.max_tokens is None or params.max_tokens <= most:
        return request
    fitted = msgspec.structs.replace(params, max_tokens=most, min_tokens=min(params.min_tokens, most))
    return msgspec.structs.replace(request, params=fitted)


def check_task(request: Request, task: Task | None) -> None:
    """Raise InvalidRequest for work that the model cannot do; `task` is None while it is unknown."""
    if task is None or isinstance(request.work, Tokenize | Detokenize | DescribeTokenizer):
        return
    needed = _tasks_for(request.work)
    if task not in needed:
        kinds = " or ".join(KINDS[each] for each in needed)
        raise InvalidRequest(f"{request.model} is {KINDS[task]} model; this API needs {kinds} model", param="model")


def _tasks_for(work: Embed | Infer | Pool | Score | None) -> tuple[Task, ...]:
    """Return the tasks of the models that can do the work."""
    match work:
        case None:
            return ("generate",)
        case Infer():
            return ("predict",)
        case Embed() | Pool(task="embed" | "token_embed"):
            return ("embed",)
        case Pool(task="classify" | "token_classify"):
            return ("classify",)
        case _:
            return ("embed", "classify")


def _check_messages(request: Request, limits: Limits) -> None:
    messages = request.messages or ()
    if not messages:
        raise InvalidRequest("messages must not be empty", param="messages")
    if len(messages) > limits.messages:
        raise InvalidRequest(f"messages must have at most {limits.messages} entries", param="messages")
    for i, message in enumerate(messages):
        if message.role not in ROLES:
            raise InvalidRequest(f"role must be one of {', '.join(ROLES)}", param=f"messages[{i}].role")
        if len(message.tool_calls) > limits.tool_calls:
            raise InvalidRequest(
                f"a message must have at most {limits.tool_calls} tool calls", param=f"messages[{i}].tool_calls"
            )
    _check_tool_results(messages)
    if message_chars(messages) + option_chars(request.prompt_options) > limits.prompt_chars:
        raise InvalidRequest(
            f"messages must have at most {limits.prompt_chars} characters in all, with documents and "
            "chat_template_kwargs",
            param="messages",
        )


def _check_tool_results(messages: tuple[Message, ...]) -> None:
    """Raise InvalidRequest if a tool's message does not answer a call of an earlier message."""
    called: set[str] = set()
    for i, message in enumerate(messages):
        called.update(call.id for call in message.tool_calls)
        if message.role == "tool" and message.tool_call_id not in called:
            raise InvalidRequest(
                "tool_call_id must be the id of a tool call in an earlier message",
                param=f"messages[{i}].tool_call_id",
            )


def _check_tools(request: Request, tools: Tools, limits: Limits) -> None:
    if request.messages is None:
        raise InvalidRequest("tools require messages", param="tools")
    _refuse_ignore_eos(request.params, "tools")
    if not 0 < len(tools.functions) <= limits.tools:
        raise InvalidRequest(f"tools must have between 1 and {limits.tools} entries", param="tools")
    if tool_chars(tools) > limits.tool_chars:
        raise InvalidRequest(f"tools must have at most {limits.tool_chars} characters in all", param="tools")
    names = [function.name for function in tools.functions]
    if len(set(names)) < len(names):
        raise InvalidRequest("tools must have different names", param="tools")
    if not {tools.named, *tools.only} <= {None, *names}:
        raise InvalidRequest("tool_choice must name functions of tools", param="tool_choice")
    parts = 0
    for i, function in enumerate(tools.functions):
        parts += _check_function(function, f"tools[{i}].function", limits)
        check_subschema_count(parts, f"tools[{i}].function.parameters")


def _check_function(function: Function, param: str, limits: Limits) -> int:
    """Return the number of subschemas in its parameters. Raise InvalidRequest."""
    if not FUNCTION_NAME.fullmatch(function.name):
        raise InvalidRequest("name must have 1 to 128 letters, digits, or . _ : / -", param=f"{param}.name")
    if not function.parameters:
        return 0
    param = f"{param}.parameters"
    _check_grammar_size(function.parameters, param, limits)
    return check_schema(function.parameters, param, strict=function.strict, of_object=True).size


def check_structured(structured: Structured, limits: Limits) -> None:
    """Raise InvalidRequest for a constraint that is out of bounds. The worker parses the grammar itself."""
    param = structured.param
    kinds = (
        structured.json_schema,
        structured.json_object,
        structured.regex,
        structured.choice,
        structured.grammar,
    )
    if sum(bool(kind) for kind in kinds) != 1:
        raise InvalidRequest("exactly one of json, json_object, regex, choice and grammar is required", param=param)
    if structured.json_schema is not None:
        _check_grammar_size(structured.json_schema, param, limits)
        check_schema(structured.json_schema, param, strict=structured.strict)
    if structured.regex is not None:
        check_regex(structured.regex, param)
    if structured.grammar is not None:
        check_grammar(structured.grammar, param)
    if len(structured.choice) > limits.choices or not all(structured.choice):
        raise InvalidRequest(
            f"choice must have between 1 and {limits.choices} entries, none of them empty", param=param
        )
    _check_grammar_size("".join(structured.choice), param, limits)


def _check_grammar_size(text: str, param: str, limits: Limits) -> None:
    if len(text) > limits.grammar_chars:
        raise InvalidRequest(f"{param} must have at most {limits.grammar_chars} characters", param=param)


def _refuse_ignore_eos(params: SamplingParams, param: str) -> None:
    if params.ignore_eos:
        raise InvalidRequest(f"ignore_eos cannot be combined with {param}", param="ignore_eos")


def _check_prompt(prompt: str | tuple[int, ...] | None, limits: Limits) -> None:
    if not prompt:
        raise InvalidRequest("prompt must not be empty", param="prompt")
    if len(prompt) > limits.prompt_chars:
        raise InvalidRequest(
            f"prompt must have at most {limits.prompt_chars} characters or token ids", param="prompt"
        )


def check_params(params: SamplingParams, limits: Limits) -> None:
    """Raise InvalidRequest for the first sampling parameter that is out of range."""
    for parameter, name, default in _RANGED:
        value = getattr(params, name)
        if value is not default and value is not None:
            parameter.check_range(value, getattr(limits, parameter.limit) if parameter.limit else None)
    for parameter in LISTS:
        if items := getattr(params, parameter.name):
            parameter.check_items(items)
    if params.max_tokens is not None and params.min_tokens > params.max_tokens:
        raise InvalidRequest(
            f"min_tokens must be at most max_tokens, {params.max_tokens}, got {params.min_tokens}",
            param="min_tokens",
        )
    if params.logit_bias:
        _check_logit_bias(params.logit_bias)
    if params.structured_outputs is not None:
        _refuse_ignore_eos(params, params.structured_outputs.param)
        check_structured(params.structured_outputs, limits)


def _check_logit_bias(biases: dict[int, float]) -> None:
    if len(biases) > MAX_LOGIT_BIASES:
        raise InvalidRequest(f"logit_bias must have at most {MAX_LOGIT_BIASES} entries", param="logit_bias")
    for token, bias in biases.items():
        if not 0 <= token <= MAX_TOKEN_ID:
            shown = str(token)[:MAX_SHOWN_CHARS]
            raise InvalidRequest(
                f"logit_bias: a token id must be between 0 and {MAX_TOKEN_ID}, got {shown}", param="logit_bias"
            )
        LOGIT_BIAS.check_range(bias)
