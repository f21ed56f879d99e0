"""Access to what transformers does not export of its rendering of chat templates."""

from __future__ import annotations

from jinja2 import Environment
from transformers.utils.chat_template_utils import _compile_jinja_template


def template_environment() -> Environment:
    """Return an environment like the one that transformers compiles chat templates in. Do not change it."""
    environment: Environment = _compile_jinja_template("").environment
    return environment
