"""Bounds on the options of a prompt, `protocol.PromptOptions`."""

from __future__ import annotations

import json

from shared.errors import InvalidRequest
from shared.protocol import DEFAULT_PROMPT_OPTIONS, PromptOptions, Request
from shared.validation.json_text import fault
from shared.validation.parameters import BY_NAME
from shared.validation.request_parameters import MAX_DOCUMENTS, MAX_TEMPLATE_VARIABLES

MAX_KWARGS_CHARS = 65_536
TRUNCATION_SIDES = ("left", "right")
# options of chats alone, with the values that mean nothing
CHAT_OPTIONS = {
    name: getattr(DEFAULT_PROMPT_OPTIONS, name)
    for name in (
        "add_generation_prompt",
        "continue_final_message",
        "chat_template_kwargs",
        "documents",
        "reasoning_effort",
    )
}
# variables of chat templates that fields of the request set, and options of transformers
RESERVED_KWARGS = frozenset(
    (
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template",
        "tokenize",
    )
)


def check_prompt_options(request: Request, max_chars: int) -> None:
    """Raise InvalidRequest, naming the field, for the first option that is out of bounds.

    Args:
        max_chars: of one text.
    """
    options = request.prompt_options
    if options == DEFAULT_PROMPT_OPTIONS and not request.cache_salt:
        return
    if options.truncate_prompt_tokens is not None:
        BY_NAME["truncate_prompt_tokens"].check_range(options.truncate_prompt_tokens)
    if options.truncation_side not in TRUNCATION_SIDES:
        raise InvalidRequest("truncation_side must be left or right", param="truncation_side")
    _check_length("cache_salt", request.cache_salt, max_chars)
    _check_length("reasoning_effort", options.reasoning_effort or "", max_chars)
    if request.messages is None:
        _check_options_of_prompt(request, max_chars)
    else:
        check_chat_options(options, max_chars)


def check_chat_options(options: PromptOptions, max_chars: int) -> None:
    """Raise InvalidRequest, naming the field, for the first option of a chat that is out of bounds."""
    if options.suffix is not None:
        raise InvalidRequest("suffix is allowed with a prompt only", param="suffix")
    if options.continue_final_message and options.add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message requires add_generation_prompt to be false", param="continue_final_message"
        )
    if options.chat_template_kwargs:
        _check_kwargs(options.chat_template_kwargs)
    if options.documents:
        _check_length("documents", options.documents, max_chars)
        documents = _parse(options.documents, "documents")
        if not isinstance(documents, list) or not all(isinstance(each, dict) for each in documents):
            raise InvalidRequest("documents must be a list of objects", param="documents")
        if len(documents) > MAX_DOCUMENTS:
            raise InvalidRequest(f"documents must have at most {MAX_DOCUMENTS} entries", param="documents")


def option_chars(options: PromptOptions) -> int:
    """Return the number of characters of the texts that become part of a prompt."""
    return len(options.chat_template_kwargs) + len(options.documents) + len(options.suffix or "")


def _check_length(name: str, text: str, max_chars: int) -> None:
    maximum = BY_NAME[name].max_chars or max_chars
    if len(text) > maximum:
        raise InvalidRequest(f"{name} must have at most {maximum} characters", param=name)


def _check_options_of_prompt(request: Request, max_chars: int) -> None:
    options = request.prompt_options
    for name, neutral in CHAT_OPTIONS.items():
        if getattr(options, name) != neutral:
            raise InvalidRequest(f"{name} is allowed with messages only", param=name)
    if options.suffix is None:
        return
    if not isinstance(request.prompt, str):
        raise InvalidRequest("suffix requires a prompt that is a text, not token ids", param="suffix")
    if len(request.prompt) + len(options.suffix) > max_chars:
        raise InvalidRequest(f"prompt and suffix must have at most {max_chars} characters in all", param="suffix")


def _check_kwargs(text: str) -> None:
    param = "chat_template_kwargs"
    if len(text) > MAX_KWARGS_CHARS:
        raise InvalidRequest(f"{param} must have at most {MAX_KWARGS_CHARS} characters as JSON", param=param)
    kwargs = _parse(text, param)
    if not isinstance(kwargs, dict):
        raise InvalidRequest(f"{param} must be an object", param=param)
    if len(kwargs) > MAX_TEMPLATE_VARIABLES:
        raise InvalidRequest(f"{param} must have at most {MAX_TEMPLATE_VARIABLES} keys", param=param)
    if reserved := sorted(RESERVED_KWARGS & kwargs.keys()):
        raise InvalidRequest(f"{param} must not have the key {reserved[0]}", param=param)


def _parse(text: str, param: str) -> object:
    if (found := fault(text)) is not None:
        raise InvalidRequest(f"{param} {found}", param=param)
    try:
        return json.loads(text)
    except ValueError:
        raise InvalidRequest(f"{param} must be valid JSON", param=param) from None
