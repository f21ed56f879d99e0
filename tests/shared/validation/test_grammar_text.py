"""Early refusal of regular expressions and grammars."""

from __future__ import annotations

import pytest

from shared.errors import InvalidRequest
from shared.protocol import SamplingParams, Structured
from shared.validation.grammar_text import MAX_GRAMMAR_CHARS, is_gbnf
from shared.validation.request_limits import Limits, check_params


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (Structured(regex="(a"), "not closed"),
        (Structured(regex="(?=a)"), "lookaround"),
        (Structured(regex="a" * (MAX_GRAMMAR_CHARS + 1)), "characters"),
        (Structured(grammar="a" * (MAX_GRAMMAR_CHARS + 1)), "characters"),
        (Structured(grammar="\n".join(f"a{i}: b" for i in range(1_001))), "rules"),
        (Structured(grammar="start: A\nA: " + " & ".join(["/a/"] * 6)), "operators"),
        (Structured(grammar="start: %json {}"), "%json"),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_expression_that_cannot_be_compiled_safely_is_refused(asked: Structured, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refused:
        check_params(SamplingParams(structured_outputs=asked), Limits())
    assert refused.value.param == "structured_outputs"


def test_gbnf_is_known_by_its_rules() -> None:
    assert is_gbnf('# a comment\nroot ::= "a"')
    assert is_gbnf("start ::= [a-z]\nroot ::= start")
    assert not is_gbnf('start: "::=" other\nother: /a/')
