"""Rendering of a chat template, with a record of which characters the template wrote itself.

The template sees what transformers shows it: the same sandbox, filters and functions. Only its own strings are of
another type (traced_text.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import TemplateSyntaxError, nodes, pass_eval_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.filters import do_join
from jinja2.sandbox import ImmutableSandboxedEnvironment

from workers.engine.text.traced_text import Traced, concat, of_one_origin, trusted
from workers.engine.text.transformers_internals import template_environment


class TemplateRenderer:
    """One chat template. A template that cannot be compiled is refused when it is rendered.

    Attributes:
        strings: all strings in the template.
    """

    def __init__(self, source: str) -> None:
        environment = _TracingEnvironment()
        self.strings = environment.strings
        self._error: TemplateSyntaxError | None = None
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            self._error = error

    def render(self, variables: Mapping[str, Any]) -> Traced:
        """Return the text. Raises what the template raises, a TemplateError or any error of an expression."""
        if self._error is not None:
            raise self._error
        text = self._template.render(variables)
        assert isinstance(text, Traced)
        return text


class _TracingCodeGenerator(CodeGenerator):
    """Compiler of templates whose strings are the trusted ones of `environment.strings`."""

    environment: _TracingEnvironment

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        if isinstance(node.value, str):
            self.write(self._string(node.value))
        else:
            super().visit_Const(node, frame)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:
        self.write(self._string(node.data))

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return self._string("".join(group))

    def _string(self, text: str) -> str:
        """Return the expression for a string of the template."""
        self.environment.strings.append(trusted(text))
        return f"environment.strings[{len(self.environment.strings) - 1}]"


class _TracingEnvironment(ImmutableSandboxedEnvironment):
    """Environment of one template, like that of transformers."""

    code_generator_class = _TracingCodeGenerator
    concat = staticmethod(concat)

    def __init__(self) -> None:
        model = template_environment()
        super().__init__(
            trim_blocks=model.trim_blocks,
            lstrip_blocks=model.lstrip_blocks,
            extensions=[type(extension) for extension in model.extensions.values()],
        )
        self.globals.update(model.globals)
        self.filters.update(model.filters)
        self.filters["join"] = _join
        self.strings: list[Traced] = []

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the sandboxed form of a string's `format`; None for other values."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None or type(value.__self__) is not Traced:
            return wrapped

        def traced_format(*args: Any, **kwargs: Any) -> str:
            return of_one_origin(str(wrapped(*args, **kwargs)), value.__self__, *args, *kwargs.values())

        return traced_format


@pass_eval_context
def _join(context: nodes.EvalContext, value: Any, d: str = trusted(""), attribute: str | int | None = None) -> str:
    """Join the items of `value`, as jinja2's filter does, whose default separator would be a plain string."""
    joined: str = do_join(context, value, d, attribute)
    return joined
