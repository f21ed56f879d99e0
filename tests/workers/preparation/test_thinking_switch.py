"""reasoning_effort none and the variable of chat templates that turns reasoning off."""

from __future__ import annotations

import json

import pytest

from shared.protocol import PromptOptions
from workers.preparation.prompt_encoding import with_thinking_switch


@pytest.mark.parametrize(
    ("effort", "given", "variables"),
    [
        ("none", {}, {"enable_thinking": False}),
        ("none", {"a": 1}, {"a": 1, "enable_thinking": False}),
        ("none", {"enable_thinking": True}, {"enable_thinking": True}),
        ("low", {"a": 1}, {"a": 1}),
        (None, {}, {}),
    ],
)
def test_effort_none_turns_thinking_off(effort: str | None, given: object, variables: object) -> None:
    options = PromptOptions(reasoning_effort=effort, chat_template_kwargs=json.dumps(given))
    assert json.loads(with_thinking_switch(options).chat_template_kwargs) == variables


def test_effort_none_needs_no_variables() -> None:
    switched = with_thinking_switch(PromptOptions(reasoning_effort="none"))
    assert json.loads(switched.chat_template_kwargs) == {"enable_thinking": False}
