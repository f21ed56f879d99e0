"""Bodies of the requests to an upstream server. Fields that it cannot honour are refused by name."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec

from shared.errors import InvalidRequest
from shared.protocol import Message, Request, SamplingParams, Structured, Tools
from workers.runtimes.upstream.dialects import JSON_EXTRAS, PROMPT_EXTRAS, SAMPLING_EXTRAS, Dialect
from workers.runtimes.upstream.progress import Progress, Written

SEED_RANGE = 2**31  # of servers that take seeds of 32 bits
# Sent at temperature 0: the answer is the same, and llama.cpp need not compute the probability of each token of the
# vocabulary. With 49,152 tokens, choosing one takes its main thread 0.06 ms instead of 0.29.
GREEDY_TOP_K = 1
OPENAI_SAMPLING = {
    name: getattr(SamplingParams(), name)
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "stop", "n", "logit_bias")
}


class BodyWriter:
    """Writes the body and finds the route of one request.

    Args:
        model: the model's name at the server.
    """

    def __init__(self, request: Request, model: str, dialect: Dialect) -> None:
        self._request = request
        self._dialect = dialect
        self.route = "/completions" if request.messages is None else "/chat/completions"
        self._fields = self._common_fields(model)

    def whole(self) -> bytes:
        """Return the body that asks for the whole answer."""
        messages = self._request.messages
        start = {"prompt": self._request.prompt} if messages is None else {"messages": self._messages(messages)}
        return _encode(self._fields | start)

    def can_continue(self, progress: Progress) -> bool:
        """Return whether the server can continue the answer after what is written.

        It can if that is the text of one choice: tool calls, constrained answers and reasoning start over.
        """
        [first, *others] = progress.choices
        free = self._request.tools is None and self._request.params.structured_outputs is None
        if others or not free or first.reasoning or first.calls or not first.text:
            return False
        if self._request.messages is not None:
            return self._dialect.continues
        return isinstance(self._request.prompt, str) or first.ids is not None

    def rest(self, written: Written) -> bytes:
        """Return the body that asks for what follows the written text, with the tokens that are left."""
        request, changed = self._request, dict(self._fields)
        for name in ("max_tokens", "min_tokens"):
            if name in changed:
                changed[name] = max(1 if name == "max_tokens" else 0, changed[name] - written.entries)
        if request.messages is not None:
            *earlier, last = request.messages
            if request.prompt_options.continue_final_message:
                messages = [*earlier, msgspec.structs.replace(last, content=last.content + written.text)]
            else:
                messages = [*request.messages, Message("assistant", written.text)]
            changed |= {"add_generation_prompt": False, "continue_final_message": True}
            return _encode(changed | {"messages": self._messages(messages)})
        if isinstance(request.prompt, str):
            return _encode(changed | {"prompt": request.prompt + written.text})
        assert request.prompt is not None and written.ids is not None
        return _encode(changed | {"prompt": [*request.prompt, *written.ids]})

    def _common_fields(self, model: str) -> dict[str, Any]:
        """Return all fields but the prompt. Raises InvalidRequest for what the server cannot honour."""
        params = self._request.params
        self._refuse(params)
        fields: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
        if params.max_tokens is not None:
            fields["max_tokens"] = params.max_tokens
        fields["seed"] = params.seed if self._dialect.wide_seeds else params.seed % SEED_RANGE
        for name, neutral in OPENAI_SAMPLING.items():
            if (value := getattr(params, name)) != neutral or name in self._dialect.explicit:
                fields[name] = value
        fields |= self._extras()
        if params.logprobs is not None:
            fields |= self._logprobs(params.logprobs)
        if params.structured_outputs is not None:
            fields |= self._structured(params.structured_outputs)
        if self._request.tools is not None:
            fields |= _tools(self._request.tools)
        if self._dialect.token_ids:
            salt = hashlib.blake2b(json.dumps((self._request.tenant, self._request.cache_salt)).encode())
            fields |= {"return_token_ids": True, "cache_salt": salt.hexdigest()[:32]}
        return fields

    def _refuse(self, params: SamplingParams) -> None:
        """Raise InvalidRequest for what no server of this kind can do."""
        prompt = self._request.prompt
        reasons = {
            "max_tokens": params.max_tokens == 0 and "must be at least 1",
            "prompt_logprobs": params.prompt_logprobs is not None and "is not supported",
            "return_token_ids": params.return_token_ids and not self._dialect.token_ids and "is not supported",
            "echo": params.echo
            and (params.logprobs is not None or not isinstance(prompt, str))
            and "is not supported with logprobs or token ids",
        }
        for name, reason in reasons.items():
            if reason:
                raise InvalidRequest(f"{name} {reason} by the upstream server of this model", param=name)

    def _extras(self) -> dict[str, Any]:
        params, options = self._request.params, self._request.prompt_options
        given = {name: (getattr(params, name), neutral) for name, neutral in SAMPLING_EXTRAS.items()}
        given |= {name: (getattr(options, name), neutral) for name, neutral in PROMPT_EXTRAS.items()}
        fields: dict[str, Any] = {}
        for name, (value, neutral) in given.items():
            if value == neutral and name not in self._dialect.explicit:
                continue
            if name not in self._dialect.extras:
                raise InvalidRequest(f"{name} is not supported by the upstream server of this model", param=name)
            fields[self._dialect.extras[name]] = json.loads(value) if name in JSON_EXTRAS else value
        if params.temperature == 0 and "top_k" in self._dialect.explicit:
            fields["top_k"] = GREEDY_TOP_K
        for name in ("reasoning_effort", "suffix"):  # OpenAI's
            if (value := getattr(options, name)) is not None:
                fields[name] = value
        return fields

    def _logprobs(self, top: int) -> dict[str, Any]:
        if self._request.messages is None:
            return {"logprobs": top}
        return {"logprobs": True} | ({"top_logprobs": top} if top else {})

    def _structured(self, form: Structured) -> dict[str, Any]:
        if form.json_object:
            return {"response_format": {"type": "json_object"}}
        if form.json_schema is not None:
            schema = {"name": "answer", "schema": json.loads(form.json_schema), "strict": form.strict}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        if self._dialect.structured:
            kinds = {"regex": form.regex, "choice": form.choice, "grammar": form.grammar}
            return {"structured_outputs": {name: value for name, value in kinds.items() if value}}
        if form.grammar is not None and self._dialect.grammar is not None:
            return {self._dialect.grammar: form.grammar}
        raise InvalidRequest(
            f"{form.param}: the upstream server of this model supports JSON schemas only", param=form.param
        )

    def _messages(self, messages: tuple[Message, ...] | list[Message]) -> list[dict[str, Any]]:
        return [_message(message, reasoning=self._dialect.reasoning) for message in messages]


def _message(message: Message, *, reasoning: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        found["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
        found["content"] = message.content or None
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        found["name"] = message.name
    if message.reasoning and reasoning:
        found["reasoning_content"] = message.reasoning
    return found


def _tools(tools: Tools) -> dict[str, Any]:
    """Return the functions that the answer may call, and which of them it must."""
    told = []
    for function in tools.allowed:
        described: dict[str, Any] = {"name": function.name}
        if function.description:
            described["description"] = function.description
        if function.parameters:
            described["parameters"] = json.loads(function.parameters)
        if function.strict:
            described["strict"] = True
        told.append({"type": "function", "function": described})
    named = {"type": "function", "function": {"name": tools.named}}
    choice = named if tools.named is not None else "required" if tools.required else "auto"
    return {"tools": told, "tool_choice": choice} | ({} if tools.parallel else {"parallel_tool_calls": False})


def _encode(fields: dict[str, Any]) -> bytes:
    return msgspec.json.encode(fields)
