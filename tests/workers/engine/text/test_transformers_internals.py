"""The private functions of transformers that `transformers_internals` uses still exist, and do what it expects."""

from __future__ import annotations

from jinja2.sandbox import ImmutableSandboxedEnvironment

from workers.engine.text.transformers_internals import template_environment


def test_environment_is_a_sandbox_with_the_functions_of_templates() -> None:
    environment = template_environment()
    assert isinstance(environment, ImmutableSandboxedEnvironment)
    assert {"raise_exception", "strftime_now", "namespace", "dict"} <= environment.globals.keys()
    assert environment.from_string('{{ {"a": "<é>"} | tojson }}').render() == '{"a": "<é>"}'
    assert environment.from_string("{% generation %}a{% endgeneration %}").render() == "a"
