"""What a request holds its answer to, as one of xgrammar's grammars.

It compiles nothing.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import xgrammar

from shared.errors import InvalidRequest
from shared.protocol import Structured, Tools
from workers.engine.grammar.matcher import GrammarMatcher
from workers.engine.grammar.schema_rewrite import prepared_text
from workers.engine.grammar.tool_tags import calls, text_with_calls
from workers.engine.text.tool_format import ToolFormat

ANY_OBJECT = '{"type": "object", "additionalProperties": true}'
PLACE = re.compile(r"^\[[\d:]+\] \S+:\d+: ")  # where in xgrammar's source a complaint arose
COMPLAINTS = (RuntimeError, ValueError, TypeError)  # xgrammar's


def grammar_of(structured: Structured | None, tools: Tools | None, form: ToolFormat) -> xgrammar.Grammar:
    """Of an answer of this form, or that may call these tools, or does one of the two; at least one is given.

    Raises InvalidRequest for what xgrammar does not understand.
    """
    parts = []
    if tools is not None:
        tag = calls(form, tools) if structured is not None or tools.must else text_with_calls(form, tools)
        parts.append(_read(tag, "tools"))
    if structured is not None:
        parts.append(_read(structured, structured.param))
    return parts[0] if len(parts) == 1 else xgrammar.Grammar.union(*parts)


def probe(compiled: xgrammar.CompiledGrammar, vocab_size: int, *, ends_by_token: bool) -> None:
    """Raises ValueError where nothing can be said in a grammar, as in one that only refers to itself."""
    bitmask = torch.empty(xgrammar.get_bitmask_shape(1, vocab_size), dtype=torch.int32)
    GrammarMatcher(compiled, ends_by_token=ends_by_token).fill(bitmask, 0)
    if not bitmask.any():
        raise ValueError("no answer can fit it")


def refusal(error: Exception, param: str) -> InvalidRequest:
    """xgrammar's complaint, without its place in the source."""
    said = PLACE.sub("", str(error).strip().partition("\n")[0])[:200]
    return InvalidRequest(f"the grammar cannot be compiled: {said}", param=param)


def _read(asked: Structured | dict[str, Any], param: str) -> xgrammar.Grammar:
    try:
        return _of_structured(asked) if isinstance(asked, Structured) else _of_tag(asked)
    except COMPLAINTS as error:
        raise refusal(error, param) from None


def _of_structured(asked: Structured) -> xgrammar.Grammar:
    if asked.json_schema is not None or asked.json_object:
        schema = prepared_text(asked.json_schema) if asked.json_schema is not None else ANY_OBJECT
        return xgrammar.Grammar.from_json_schema(schema, any_whitespace=False)
    if asked.regex is not None:
        return xgrammar.Grammar.from_regex(asked.regex)
    if asked.grammar is not None:
        return xgrammar.Grammar.from_ebnf(asked.grammar)
    return _of_tag({"type": "or", "elements": [{"type": "const_string", "value": text} for text in asked.choice]})


def _of_tag(form: dict[str, Any]) -> xgrammar.Grammar:
    return xgrammar.Grammar.from_structural_tag({"type": "structural_tag", "format": form})
