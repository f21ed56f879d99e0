"""Access to what transformers does not export of its rendering of chat templates."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment
from transformers.utils.chat_template_utils import _alias_reasoning_fields, _compile_jinja_template


def template_environment() -> Environment:
    """Return an environment like the one that transformers compiles chat templates in. Do not change it."""
    environment: Environment = _compile_jinja_template("").environment
    return environment


def with_reasoning_aliases(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return turns with their reasoning under each name that chat templates have for it."""
    aliased: list[dict[str, Any]] = _alias_reasoning_fields(turns)
    return aliased
