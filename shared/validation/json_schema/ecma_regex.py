"""Translation of regular expressions from ECMA-262, which JSON Schema uses, to the syntax of the grammar compiler.

The compiler reads the syntax of Rust's `regex` crate, in which some expressions of ECMA-262 mean something else:
`.` matches more characters, `[a[b]]` and `[a&&b]` are operations on sets, and `{,3}` is a repetition. So each
expression is parsed and written anew. Constructs that no grammar can follow are refused by name.

Reference: ECMA-262, "RegExp (Regular Expression) Objects", with the additions of Annex B.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_REPETITIONS = 1_000_000
MAX_NESTED_GROUPS = 100  # the compiler refuses more than 250 levels

_DIGIT, _WORD = "0-9", "0-9A-Za-z_"
_SPACE = r"\t\n\x0B\x0C\r \x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}\x{FEFF}"
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_DOT = r"[^\n\r\x{2028}\x{2029}]"
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}
_UNSUPPORTED = {
    **dict.fromkeys("bB", "word boundaries are not supported"),
    **dict.fromkeys("123456789k", "backreferences are not supported"),
}
_REPETITION = re.compile(r"\{(\d{1,9})(,(\d{0,9}))?\}")
_UPPER_BOUND_ONLY = re.compile(r"\{,\d+\}")
_GROUP = re.compile(r"\?(?::|P?<[A-Za-z_]\w*>)")
_CASE = re.compile(r"\(\?i\)")
_LOOKAROUND = re.compile(r"\?<?[=!]")
_PROPERTY = re.compile(r"[pP]\{[A-Za-z_]+(=[A-Za-z_]+)?\}")
_CONTROL = re.compile(r"c([A-Za-z])")
_UNWRITABLE = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")  # JSON has no escape of one letter for them
_HEX = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}")


class UnsupportedRegexError(ValueError):
    """A regular expression that is malformed or cannot be followed; the message says why, without quoting it."""


def to_rust(pattern: str, *, whole: bool = False) -> str:
    """Return `pattern` in the syntax of Rust's `regex` crate.

    Args:
        whole: the expression is to match a whole text, so `^` and `$` at its ends mean nothing.

    Raises:
        UnsupportedRegexError: the expression is malformed, or uses lookaround, backreferences or word boundaries.
    """
    return _Parser(pattern, whole=whole).parse()


def escaped(text: str) -> str:
    """Return a regular expression in Rust's syntax that matches exactly `text`."""
    return "".join(_literal(char, control=True) for char in text)


@dataclass
class _Group:
    """A group that is being read; the expression itself is one.

    Attributes:
        begins: True if nothing precedes the group, so that an alternative of it may begin with `^`.
        at_start: True if nothing precedes the current place.
        repeatable: True if a quantifier may follow.
        has_start, has_end: True if the group has a `^`, or a `$`.
        ended: True if the current alternative has a `$`, which nothing may follow.
    """

    begins: bool
    at_start: bool
    repeatable: bool = False
    has_start: bool = False
    has_end: bool = False
    ended: bool = False


class _Parser:
    def __init__(self, pattern: str, *, whole: bool) -> None:
        self._text = pattern
        self._at = 0
        self._whole = whole
        self._out: list[str] = []
        self._groups = [_Group(begins=True, at_start=True)]

    def parse(self) -> str:
        if (flag := _CASE.match(self._text)) is not None:
            self._at = flag.end()
            self._out.append("(?i)")
        while self._at < len(self._text):
            self._step(self._next())
        if len(self._groups) > 1:
            raise UnsupportedRegexError("a group is not closed")
        return "".join(self._out)

    def _next(self) -> str:
        if self._at >= len(self._text):
            raise UnsupportedRegexError("it ends within a class or an escape")
        self._at += 1
        return self._text[self._at - 1]

    def _step(self, char: str) -> None:
        match char:
            case "(":
                self._open()
            case ")":
                self._close()
            case "|":
                group = self._groups[-1]
                group.at_start, group.repeatable, group.ended = group.begins, False, False
                self._out.append("|")
            case "^" | "$":
                self._anchor(char)
            case "*" | "+" | "?":
                self._quantify(char)
            case "{" if (found := _REPETITION.match(self._text, self._at - 1)) is not None:
                self._at = found.end()
                self._quantify(_bounded(found))
            case "{" if _UPPER_BOUND_ONLY.match(self._text, self._at - 1):
                raise UnsupportedRegexError("a repetition must have a minimum")  # literal here, elsewhere 0
            case ".":
                self._atom(_DOT)
            case "[":
                self._atom(self._class())
            case "\\":
                escape = self._escape()
                self._atom(
                    f"[{escape.members}]" if isinstance(escape, _Set) else _literal(escape, control=self._whole)
                )
            case _:
                self._atom(_literal(char, control=self._whole))

    def _atom(self, text: str) -> None:
        group = self._groups[-1]
        if group.ended:
            raise UnsupportedRegexError("$ is supported at the end only")
        group.at_start, group.repeatable = False, True
        self._out.append(text)

    def _open(self) -> None:
        if _LOOKAROUND.match(self._text, self._at):
            raise UnsupportedRegexError("lookaround is not supported")
        if (found := _GROUP.match(self._text, self._at)) is not None:
            self._at = found.end()
        elif self._text.startswith("?", self._at):
            raise UnsupportedRegexError("this kind of group is not supported")
        if len(self._groups) > MAX_NESTED_GROUPS:
            raise UnsupportedRegexError(f"groups must not be nested deeper than {MAX_NESTED_GROUPS} levels")
        start = self._groups[-1].at_start
        self._atom("(?:")
        self._groups.append(_Group(begins=start, at_start=start))

    def _close(self) -> None:
        if len(self._groups) == 1:
            raise UnsupportedRegexError("a group is closed that was not opened")
        closed, group = self._groups.pop(), self._groups[-1]
        group.has_start |= closed.has_start
        group.has_end |= closed.has_end
        group.ended = closed.has_end
        group.repeatable = not (closed.has_start or closed.has_end)
        self._out.append(")")

    def _anchor(self, char: str) -> None:
        group = self._groups[-1]
        if char == "^":
            if not group.at_start:
                raise UnsupportedRegexError("^ is supported at the beginning only")
            group.has_start = True
        else:
            group.ended = group.has_end = True
        group.repeatable = False
        if not self._whole:
            self._out.append(char)

    def _quantify(self, quantifier: str) -> None:
        group = self._groups[-1]
        if not group.repeatable:
            raise UnsupportedRegexError("a quantifier follows nothing that it could repeat")
        group.repeatable = False
        if self._text.startswith("?", self._at):  # a lazy quantifier matches the same texts
            self._at += 1
        self._out.append(quantifier)

    def _class(self) -> str:
        negated = self._text.startswith("^", self._at)
        self._at += negated
        members: list[str | _Set] = []
        while (char := self._next()) != "]":
            members.append(self._escape(in_class=True) if char == "\\" else _Dash() if char == "-" else char)
        if not members and negated:
            return "(?s:.)"
        if not negated and all(isinstance(each, str) and _UNWRITABLE.match(each) for each in members):
            raise UnsupportedRegexError("a class must not be empty, or have control characters only")
        return f"[{'^' if negated else ''}{_join(members)}]"

    def _escape(self, *, in_class: bool = False) -> str | _Set:
        """Return the character or the set of characters of the escape after a backslash."""
        char = self._next()
        if (kind := _CLASSES.get(char.lower())) is not None:
            return _Set(kind if char.islower() else f"[^{kind}]")
        if (found := _PROPERTY.match(self._text, self._at - 1)) is not None:
            self._at = found.end()
            return _Set("\\" + found.group())
        if (found := _HEX.match(self._text, self._at - 1)) is not None:
            self._at = found.end()
            return self._scalar(int(found[1] or found[2] or found[3], 16))
        if char == "b" and in_class:
            return "\b"
        if (found := _CONTROL.match(self._text, self._at - 1)) is not None:
            self._at = found.end()
            return chr(ord(found[1]) % 32)
        if char not in _CONTROLS and char.isalnum():
            raise UnsupportedRegexError(_UNSUPPORTED.get(char, "an escape is not supported"))
        return _CONTROLS.get(char, char)

    def _scalar(self, code: int) -> str:
        """Return the character of a code point, or of a pair of surrogates whose first was just read."""
        if 0xD800 <= code < 0xDC00 and self._text.startswith("\\u", self._at):
            found = _HEX.match(self._text, self._at + 1)
            low = int(found[2], 16) if found and found[2] else 0
            if found is not None and 0xDC00 <= low < 0xE000:
                self._at = found.end()
                code = 0x10000 + (code - 0xD800 << 10) + low - 0xDC00
        if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
            raise UnsupportedRegexError("a lone surrogate is not a character")
        return chr(code)


@dataclass(frozen=True)
class _Set:
    """A set of characters, as it is written inside of brackets."""

    members: str


class _Dash(str):
    """A dash that may stand for a range."""

    __slots__ = ()

    def __new__(cls) -> _Dash:
        return super().__new__(cls, "-")


def _bounded(found: re.Match[str]) -> str:
    low, high = int(found[1]), int(found[3]) if found[3] else None
    if high is not None and low > high:
        raise UnsupportedRegexError("a repetition's minimum is above its maximum")
    if max(low, high or 0) > MAX_REPETITIONS:
        raise UnsupportedRegexError(f"a repetition must not exceed {MAX_REPETITIONS}")
    return f"{{{low}{',' if found[2] else ''}{'' if high is None else high}}}"


def _join(members: list[str | _Set]) -> str:
    """Return the members of a class; a dash between two characters makes a range."""
    out, at = [], 0
    while at < len(members):
        first = members[at]
        if isinstance(first, _Set):
            out.append(first.members)
        elif at + 2 < len(members) and isinstance(members[at + 1], _Dash) and isinstance(members[at + 2], str):
            last = members[at + 2]
            assert isinstance(last, str)
            if first > last:
                raise UnsupportedRegexError("a range of a class is out of order")
            out.append(f"{_literal(first, control=True)}-{_literal(last, control=True)}")
            at += 2
        else:
            out.append(_literal(first, control=True))
        at += 1
    return "".join(out)


def _literal(char: str, *, control: bool = False) -> str:
    if not control and _UNWRITABLE.match(char):
        raise UnsupportedRegexError("control characters are supported in classes only")
    if char.isalnum() or (ord(char) > 0xA0 and char.isprintable()):
        return char
    return f"\\x{{{ord(char):X}}}"
