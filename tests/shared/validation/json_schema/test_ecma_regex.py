"""Regular expressions of ECMA-262 in Rust's syntax; what they match is tested with the grammars."""

from __future__ import annotations

import pytest

from shared.validation.json_schema.ecma_regex import UnsupportedRegexError, to_rust


@pytest.mark.parametrize(
    ("pattern", "written"),
    [
        ("^a|b$", "^a|b$"),
        ("(?<year>[0-9]+?)", "(?:[0-9]+)"),
        (r"[a[b]&&c]", r"[a\x{5B}b]\x{26}\x{26}c\x{5D}"),
        (r"^[\w-.]\d$", r"^[0-9A-Za-z_\x{2D}\x{2E}][0-9]$"),
        (r"\p{L}é", r"[\p{L}]é"),
        (r"\ud83d\ude00\u{1F600}", "😀😀"),
        ("a{2,}{", r"a{2,}\x{7B}"),
        ("(?i)abc", "(?i)abc"),
        ("[^]", "(?s:.)"),
        (r"\cJ\/\x41\t", r"\x{A}\x{2F}A\x{9}"),
    ],
)
def test_pattern_is_written_in_the_other_syntax(pattern: str, written: str) -> None:
    assert to_rust(pattern) == written


def test_anchors_of_a_whole_text_are_left_out() -> None:
    assert to_rust("^(?:a|b$)$", whole=True) == "(?:a|b)"


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(?=a)b", "lookaround"),
        ("(?<!a)b", "lookaround"),
        (r"\bfoo", "word boundaries"),
        (r"(a)\1", "backreferences"),
        (r"(?<n>a)\k<n>", "backreferences"),
        ("a^b", "beginning only"),
        ("(a$)b", "end only"),
        ("(^a)*b", "quantifier"),
        ("*a", "quantifier"),
        ("a**", "quantifier"),
        ("a{2,1}", "minimum is above"),
        ("a{,3}", "must have a minimum"),
        ("a{9999999}", "must not exceed"),
        ("(a", "not closed"),
        ("a)", "was not opened"),
        ("[b-a]", "out of order"),
        ("[]", "empty"),
        ("[a", "ends within"),
        ("a\\", "ends within"),
        (r"\q", "an escape"),
        (r"\ud83d", "surrogate"),
        ("a\\x01", "control characters"),
        ("a[\\x01]", "control characters"),
        ("(?x)a", "kind of group"),
        ("(" * 101 + ")" * 101, "nested"),
    ],
)
def test_unsupported_construct_is_named(pattern: str, reason: str) -> None:
    with pytest.raises(UnsupportedRegexError, match=reason):
        to_rust(pattern)
