"""Grammars of answers in llguidance's format: JSON schemas, regular expressions, choices, Lark, GBNF, tool calls.

Reference: llguidance's docs/syntax.md and docs/json_schema.md.
"""

from __future__ import annotations

import json
import re
from typing import Any

from llguidance.gbnf_to_lark import gbnf_to_lark

from shared.errors import InvalidRequest
from shared.protocol import Function, Structured, Tools
from shared.validation.grammar_text import is_gbnf
from shared.validation.json_schema.ecma_regex import escaped, to_rust
from shared.validation.json_schema.parsing import Schema
from shared.validation.json_schema.translation import translate_schema
from workers.engine.interface import ConstraintSpec
from workers.engine.text.tool_format import ToolFormat

SCHEMA_OPTIONS: dict[str, Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrbtf\\"',  # \u could spell the name of a property in another way
}
LIKE_JSON = '%llguidance {"ignore_once": true}\n'  # lexed together with JSON, so that both may begin alike
_LEXEME = re.compile(r'"[^"]*"|[{}\[\]]|, |: |[^"{}\[\],:]+|.')
FORM = "form"  # name of the grammar of structured output, beside one of tool calls


def answer_grammar(spec: ConstraintSpec, tool_format: ToolFormat) -> str:
    """Return the grammar of an answer that is structured output, may call tools, or is either of the two.

    Raises InvalidRequest for what llguidance does not support.
    """
    form = None if spec.structured is None else _structured(spec.structured)
    if spec.tools is None:
        assert form is not None  # one of the two is given
        return json.dumps({"grammars": [form]})
    calls = _Calls(tool_format, spec.tools, like_json=form is not None and "json_schema" in form)
    if form is not None:
        lark, forms = f"start: calls | @{FORM}\n{calls.rules}", [{"name": FORM, **form}]
    else:
        lark, forms = f"start: calls\n{calls.rules}" if spec.tools.must else calls.text_with_calls, []
    return json.dumps({"grammars": [{"lark_grammar": LIKE_JSON + lark}, *forms]})


def _structured(constraint: Structured) -> dict[str, Any]:
    param = constraint.param
    if constraint.json_schema is not None:
        return {"json_schema": _json_grammar(json.loads(constraint.json_schema), param, strict=constraint.strict)}
    if constraint.json_object:
        return {"json_schema": _json_grammar({"type": "object"}, param, strict=True)}
    if constraint.regex is not None:
        return {"lark_grammar": _terminal(to_rust(constraint.regex, whole=True))}
    if constraint.grammar is not None:
        return {"lark_grammar": _lark(constraint.grammar, param)}
    return {"lark_grammar": _terminal("|".join(map(escaped, constraint.choice)))}


def _json_grammar(schema: Schema, param: str, *, strict: bool) -> dict[str, Any]:
    translated = translate_schema(schema, param, strict=strict).schema
    options = {**SCHEMA_OPTIONS, "lenient": not strict}
    return {**(translated if isinstance(translated, dict) else {"allOf": [translated]}), "x-guidance": options}


def _terminal(regex: str) -> str:
    return f"start: /{regex}/" if regex else 'start: ""'


def _lark(grammar: str, param: str) -> str:
    if not is_gbnf(grammar):
        return grammar
    try:
        return str(gbnf_to_lark(grammar))
    except Exception:  # noqa: BLE001  the converter raises plain exceptions, whose texts quote the grammar
        raise InvalidRequest("the grammar cannot be compiled: it is not valid GBNF", param=param) from None


class _Calls:
    """Lark rules of calls to an answer's tools.

    Args:
        like_json: write calls with the lexemes of JSON. The lexer takes the longest lexeme, so that otherwise an
            answer that begins like a call could not be other JSON.

    Attributes:
        rules: the rule `calls`, and those that it needs: an answer of calls alone.
        text_with_calls: a grammar of text, calls, or both.
    """

    def __init__(self, tool_format: ToolFormat, tools: Tools, *, like_json: bool = False) -> None:
        self._format = tool_format
        self._write = _lexemes if like_json else _quoted
        once = tool_format.single_call or tools.named is not None or not tools.parallel
        call = "call" if once else f"call ({_quoted(tool_format.separator)} call)*"
        ends = f"{_quoted(tool_format.opening)} {call} {_quoted(tool_format.closing)}"
        functions = list(enumerate(tools.allowed))
        bodies = "\n".join(f"arguments_{i}: %json {self._arguments(function)}" for i, function in functions)
        self.rules = f"calls: {ends}\ncall: {self._options(functions)}\n{bodies}\n"
        rest = self._options(functions, skip=len(tool_format.trigger))
        if tool_format.opening:
            later = "" if once else f" ({_quoted(tool_format.separator)} call)*"
            rest = f"({rest}){later} {_quoted(tool_format.closing)}"
        repeated = "?" if once or tool_format.opening else "*"
        trigger = escaped(tool_format.trigger)
        text = f"TEXT: /(?s:.*)/ & ~/(?s:.*){trigger}(?s:.*)/\nbegin[lazy]: /(?s:.*){trigger}/\n"
        start = "start: begin rest | TEXT" if repeated == "?" else "start: (begin rest)* TEXT"
        self.text_with_calls = f"{start}\nrest: {rest}\n{text}{self.rules}"

    def _options(self, functions: list[tuple[int, Function]], skip: int = 0) -> str:
        """Return the alternatives of a call; with `skip`, of what follows the trigger of the first one."""
        opening = self._format.opening if skip else ""
        return " | ".join(
            f"{self._write((opening + self._format.before + function.name + self._format.middle)[skip:])} "
            f"arguments_{i} {self._write(self._format.after)}"
            for i, function in functions
        )

    @staticmethod
    def _arguments(function: Function) -> str:
        schema = json.loads(function.parameters) if function.parameters else {}
        if isinstance(schema, dict):
            schema = {"type": "object", **schema}
        return json.dumps(_json_grammar(schema, "tools", strict=function.strict))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _lexemes(text: str) -> str:
    return " ".join(map(_quoted, _LEXEME.findall(text)))
