"""Rendering of a chat by the template of a checkpoint."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from shared.errors import InvalidRequest
from shared.protocol import DEFAULT_PROMPT_OPTIONS, Message, PromptOptions, Tools
from workers.engine.text.chat_template import PLAIN_MARKUP, native_turns, plain_turns
from workers.engine.text.template_renderer import TemplateRenderer
from workers.engine.text.tool_format import detect_tool_format
from workers.engine.text.traced_text import Traced, trusted

REASONING_MARKS = ("<think>", "</think>")  # of many models, whether their template writes them or not
# errors of expressions in a template, such as an attribute of a wrong type
TEMPLATE_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class ChatRenderer:
    """Chat template of a checkpoint, which may have a separate one for chats with tools.

    Attributes:
        template: the template of chats without tools; may be empty.
        tool_format: the format in which the model writes tool calls.
        markup: text that a rendered chat may have beside that of its messages, joined by NUL characters.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        found: str | dict[str, str] = tokenizer.chat_template or ""
        self.template = found if isinstance(found, str) else found.get("default", "")
        with_tools = self.template if isinstance(found, str) else found.get("tool_use") or self.template
        self.tool_format, self._supports_tools = detect_tool_format(with_tools)
        self._default = TemplateRenderer(self.template) if self.template else None
        self._with_tools = TemplateRenderer(with_tools) if with_tools else None
        self._end_mark = f"{secrets.token_hex(16)} "  # the space shows whether the template trims
        self._special_tokens = {name: _trusted(value) for name, value in tokenizer.special_tokens_map.items()}
        renderers = [each for each in (self._default, self._with_tools) if each is not None]
        strings = [string for each in renderers for string in each.strings]
        self.markup = "\0".join([*strings, *REASONING_MARKS, *PLAIN_MARKUP])

    def render(
        self,
        messages: Sequence[Message],
        tools: Tools | None = None,
        options: PromptOptions = DEFAULT_PROMPT_OPTIONS,
    ) -> str:
        """Return a chat's text.

        Raises InvalidRequest if there is no chat template, or the template refuses the messages or its variables.
        """
        renderer = self._default if tools is None else self._with_tools
        if renderer is None:
            raise InvalidRequest("this model has no chat template; send a prompt instead", param="messages")
        if self._supports_tools:
            turns, functions = native_turns(messages, tools, short_ids=self.tool_format.short_ids)
        else:
            turns, functions = plain_turns(messages, tools), None
        final = turns[-1]["content"]
        if options.continue_final_message:
            turns[-1]["content"] = final + self._end_mark
        variables = self._variables(options) | {"messages": turns, "tools": functions}
        try:
            text = renderer.render(variables)
        except TEMPLATE_ERRORS as error:
            what = " or chat_template_kwargs" if options.chat_template_kwargs else ""
            raise InvalidRequest(
                f"the model's chat template refuses these messages{what}: {error}", param="messages"
            ) from error
        return self._cut(text, final) if options.continue_final_message else text

    def _variables(self, options: PromptOptions) -> dict[str, Any]:
        """Return the variables of the template, without messages and tools."""
        variables = dict(self._special_tokens)
        if options.chat_template_kwargs:
            variables |= json.loads(options.chat_template_kwargs)
        if options.reasoning_effort is not None:
            variables["reasoning_effort"] = options.reasoning_effort
        variables["documents"] = json.loads(options.documents) if options.documents else None
        variables["add_generation_prompt"] = options.add_generation_prompt
        return variables

    def _cut(self, text: Traced, final: str) -> str:
        """Return a chat without the end of its last turn, whose content `final` is marked; as transformers does."""
        mark = self._end_mark.strip()
        end = text.rfind(mark)
        if end < 0 or final.strip() not in text:
            raise InvalidRequest(
                "continue_final_message: the chat template leaves out or changes the last message",
                param="continue_final_message",
            )
        kept = text[:end]
        return kept if text.startswith(self._end_mark, end) else kept.rstrip()


def _trusted(value: str | list[str]) -> Any:
    return trusted(value) if isinstance(value, str) else list(map(trusted, value))
