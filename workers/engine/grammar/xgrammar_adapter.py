"""Translation of a request's constraint to a grammar of xgrammar, before it is compiled."""

from __future__ import annotations

import re
from typing import Any

import torch
import xgrammar

from shared.errors import InvalidRequest
from shared.protocol import Structured, Tools
from workers.engine.grammar.matcher import GrammarMatcher
from workers.engine.grammar.schema_rewrite import rewrite_schema_text
from workers.engine.grammar.tool_tags import calls_tag, text_with_calls_tag
from workers.engine.text.tool_format import ToolFormat

ANY_OBJECT = '{"type": "object", "additionalProperties": true}'
SOURCE_LOCATION = re.compile(r"^\[[\d:]+\] \S+:\d+: ")  # time and place in xgrammar's source, before a message
XGRAMMAR_ERRORS = (RuntimeError, ValueError, TypeError)


def make_grammar(structured: Structured | None, tools: Tools | None, tool_format: ToolFormat) -> xgrammar.Grammar:
    """Return the grammar of an answer that is structured output, may call tools, or is either of the two.

    At least one of `structured` and `tools` is given. Raises InvalidRequest for what xgrammar does not support.
    """
    parts = []
    if tools is not None:
        make_tag = calls_tag if structured is not None or tools.must else text_with_calls_tag
        parts.append(_translate(make_tag(tool_format, tools), "tools"))
    if structured is not None:
        parts.append(_translate(structured, structured.param))
    return parts[0] if len(parts) == 1 else xgrammar.Grammar.union(*parts)


def check_satisfiable(compiled: xgrammar.CompiledGrammar, vocab_size: int, *, ends_by_token: bool) -> None:
    """Raise ValueError for a grammar that no answer can fit, such as one that only refers to itself."""
    bitmask = torch.empty(xgrammar.get_bitmask_shape(1, vocab_size), dtype=torch.int32)
    GrammarMatcher(compiled, ends_by_token=ends_by_token).fill(bitmask, 0)
    if not bitmask.any():
        raise ValueError("no answer can fit the grammar")


def to_invalid_request(error: Exception, param: str) -> InvalidRequest:
    """Convert an error of xgrammar, without the place in its source."""
    reason = SOURCE_LOCATION.sub("", str(error).strip().partition("\n")[0])[:200]
    return InvalidRequest(f"the grammar cannot be compiled: {reason}", param=param)


def _translate(constraint: Structured | dict[str, Any], param: str) -> xgrammar.Grammar:
    try:
        return _structured_grammar(constraint) if isinstance(constraint, Structured) else _tag_grammar(constraint)
    except XGRAMMAR_ERRORS as error:
        raise to_invalid_request(error, param) from None


def _structured_grammar(constraint: Structured) -> xgrammar.Grammar:
    if constraint.json_schema is not None or constraint.json_object:
        schema = rewrite_schema_text(constraint.json_schema) if constraint.json_schema is not None else ANY_OBJECT
        return xgrammar.Grammar.from_json_schema(schema, any_whitespace=False)
    if constraint.regex is not None:
        return xgrammar.Grammar.from_regex(constraint.regex)
    if constraint.grammar is not None:
        return xgrammar.Grammar.from_ebnf(constraint.grammar)
    choices = [{"type": "const_string", "value": text} for text in constraint.choice]
    return _tag_grammar({"type": "or", "elements": choices})


def _tag_grammar(tag: dict[str, Any]) -> xgrammar.Grammar:
    return xgrammar.Grammar.from_structural_tag({"type": "structural_tag", "format": tag})
