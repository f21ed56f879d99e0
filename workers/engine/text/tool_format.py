"""How a model writes its tool calls, by its chat template; and the structural tags that hold it to that form.

An answer is text in which calls may stand. A call is `before` name `middle` arguments `after`; where the calls of
an answer stand in one list, `opening` and `closing` are around it and `separator` between two.

References: the chat templates of Hermes 2 Pro, Qwen 2.5 and 3 (`<tool_call>`), Llama 3.1 and 3.2 (a JSON object
alone), Mistral 7B v0.3 (`[TOOL_CALLS]` and a list) and Mistral Small 3.2 (`[TOOL_CALLS]`, `[ARGS]`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from shared.protocol import Tools
from workers.engine.grammar.schema_rewrite import prepared

ANY_ARGUMENTS: dict[str, Any] = {"type": "object", "additionalProperties": True}


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

    def calls(self, tools: Tools) -> dict[str, Any]:
        """The structural tag of an answer that calls these tools and says nothing, as xgrammar reads it."""
        listed = {
            "type": "tags_with_separator",
            "tags": self._calls(tools),
            "separator": self.separator,
            "at_least_one": True,
            "stop_after_first": self._once(tools),
        }
        if not self.opening:
            return listed
        return {"type": "tag", "begin": self.opening, "content": listed, "end": self.closing}

    def text_with_calls(self, tools: Tools) -> dict[str, Any]:
        """The same of an answer that may say something, call these tools, or both."""
        tags = [self.calls(tools)] if self.opening else self._calls(tools)
        once = self._once(tools) or bool(self.opening)
        return {"type": "triggered_tags", "triggers": [self.trigger], "tags": tags, "stop_after_first": once}

    def first_call(self, name: str) -> str:
        """What an answer begins with that calls this function first."""
        return self.opening + self.before + name + self.middle

    def _once(self, tools: Tools) -> bool:
        return self.single or tools.named is not None or not tools.parallel

    def _calls(self, tools: Tools) -> list[dict[str, Any]]:
        return [self._call(each.name, each.parameters) for each in tools.allowed]

    def _call(self, name: str, parameters: str) -> dict[str, Any]:
        schema = prepared(json.loads(parameters)) if parameters else ANY_ARGUMENTS
        if isinstance(schema, dict):
            schema.setdefault("type", "object")
        arguments = {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": 1}
        return {"type": "tag", "begin": self.before + name + self.middle, "content": arguments, "end": self.after}


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
