"""Forms in which models write their tool calls, by their chat templates.

An answer is text in which calls may stand. A call is `before` name `middle` arguments `after`; where the calls of
an answer stand in one list, `opening` and `closing` are around it and `separator` between two.

References: the chat templates of Hermes 2 Pro, Qwen 2.5 and 3 (`<tool_call>`), Llama 3.1 and 3.2 (a JSON object
alone), Mistral 7B v0.3 (`[TOOL_CALLS]` and a list) and Mistral Small 3.2 (`[TOOL_CALLS]`, `[ARGS]`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class ToolFormat:
    """See the module.

    Attributes:
        trigger: what only a call begins with.
        single: the model makes one call at most.
        short_ids: its template wants calls' ids of 9 letters and digits.
    """

    name: str
    before: str
    middle: str
    after: str
    trigger: str
    separator: str = ""
    opening: str = ""
    closing: str = ""
    single: bool = False
    short_ids: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """All that stands around names and arguments."""
        return self.opening, self.before, self.middle, self.after, self.closing

    def first_call(self, name: str) -> str:
        """What an answer begins with that calls this function first."""
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
    "llama", before='{"name": "', middle='", "parameters": ', after="}", trigger='{"name": "', single=True
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


def tool_format(template: str) -> tuple[ToolFormat, bool]:
    """The form that a chat template teaches, and whether the template itself tells the model of its tools.

    A template that knows no tools, or writes calls in a form that is not known here, gets Hermes' form, and the
    tools in a system message of ours.
    """
    if re.search(r"\btools\b", template):
        if "<tool_call>" in template and "<function=" not in template:
            return HERMES, True
        if "[TOOL_CALLS]" in template:
            return (MISTRAL if "[ARGS]" in template else MISTRAL_LIST), True
        if '"parameters": ' in template and "ipython" in template:
            return LLAMA, True
    return HERMES, False
