"""Formats in which models write tool calls, detected from their chat templates.

A call is written as `before` name `middle` arguments `after`. If a format puts the calls of an answer into one
list, `opening` and `closing` enclose it, and `separator` separates two calls.

References: the chat templates of Hermes 2 Pro, Qwen 2.5 and 3 (`<tool_call>`), Llama 3.1 and 3.2 (a JSON object
alone), Mistral 7B v0.3 (`[TOOL_CALLS]` and a list) and Mistral Small 3.2 (`[TOOL_CALLS]`, `[ARGS]`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class ToolFormat:
    """Format of tool calls; see the module.

    Attributes:
        trigger: text that only a call begins with.
        single_call: the model makes at most one call.
        short_ids: the template requires call ids of 9 letters and digits.
    """

    name: str
    before: str
    middle: str
    after: str
    trigger: str
    separator: str = ""
    opening: str = ""
    closing: str = ""
    single_call: bool = False
    short_ids: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """All text around names and arguments."""
        return self.opening, self.before, self.middle, self.after, self.closing

    def call_opening(self, name: str) -> str:
        """Return the beginning of an answer that calls this function first."""
        return self.opening + self.before + name + self.middle


HERMES = ToolFormat(
    "hermes",
    before='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    after="}\n</tool_call>",
    trigger="<tool_call>",
    separator="\n",
)
LLAMA = ToolFormat(
    "llama", before='{"name": "', middle='", "parameters": ', after="}", trigger='{"name": "', single_call=True
)
MISTRAL_LIST = ToolFormat(
    "mistral-list",
    before='{"name": "',
    middle='", "arguments": ',
    after="}",
    trigger="[TOOL_CALLS]",
    separator=", ",
    opening="[TOOL_CALLS] [",
    closing="]",
    short_ids=True,
)
MISTRAL = ToolFormat(
    "mistral", before="[TOOL_CALLS]", middle="[ARGS]", after="", trigger="[TOOL_CALLS]", short_ids=True
)


def detect_tool_format(template: str) -> tuple[ToolFormat, bool]:
    """Return the format that a chat template uses, and whether the template describes tools to the model.

    A template that does not support tools, or uses an unknown format, gets the format of Hermes; the tools are then
    described in a system message (chat_template.py).
    """
    if re.search(r"\btools\b", template):
        if "<tool_call>" in template and "<function=" not in template:
            return HERMES, True
        if "[TOOL_CALLS]" in template:
            return (MISTRAL if "[ARGS]" in template else MISTRAL_LIST), True
        if '"parameters": ' in template and "ipython" in template:
            return LLAMA, True
    return HERMES, False
