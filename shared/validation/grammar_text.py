"""Checks on the regular expressions and grammars that constrain answers, before a worker compiles them.

Their text is bounded more tightly than the compiler's own limits, which it checks too late: it recurses over chains
of rules, and the intersection of expressions takes time and memory that double with each.
"""

from __future__ import annotations

import re

from shared.errors import InvalidRequest
from shared.validation.json_schema.ecma_regex import UnsupportedRegexError, to_rust

MAX_GRAMMAR_CHARS = 16_384
MAX_COLONS = 1_000  # each rule has one
MAX_OPERATORS = 4  # intersections and complements of terminals

_GBNF_RULE = re.compile(r"^\s*[A-Za-z][\w-]*\s*::=", re.MULTILINE)


def is_gbnf(grammar: str) -> bool:
    """Return whether a grammar is in llama.cpp's GBNF syntax. Lark's has no `::=`."""
    return _GBNF_RULE.search(grammar) is not None


def check_regex(regex: str, param: str) -> None:
    """Raise InvalidRequest for a regular expression that is malformed or cannot be followed."""
    _check_length(regex, param)
    try:
        to_rust(regex, whole=True)
    except UnsupportedRegexError as error:
        raise InvalidRequest(f"the regular expression is not supported: {error}", param=param) from None


def check_grammar(grammar: str, param: str) -> None:
    """Raise InvalidRequest for a grammar, in Lark or GBNF, that is too large to be compiled safely."""
    _check_length(grammar, param)
    if grammar.count(":") > MAX_COLONS:
        raise InvalidRequest(f"a grammar must have at most {MAX_COLONS} rules and colons", param=param)
    if is_gbnf(grammar):
        return
    if grammar.count("&") + grammar.count("~") > MAX_OPERATORS:
        raise InvalidRequest(f"a grammar must have at most {MAX_OPERATORS} of the operators & and ~", param=param)
    if "%json" in grammar:
        raise InvalidRequest("%json is not supported in a grammar; send the schema as json", param=param)


def _check_length(text: str, param: str) -> None:
    if len(text) > MAX_GRAMMAR_CHARS:
        raise InvalidRequest(
            f"a regular expression or grammar must have at most {MAX_GRAMMAR_CHARS} characters", param=param
        )
