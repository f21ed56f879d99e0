"""JSON text that a request carries inside a string, such as the arguments of a tool call.

The JSON of the request itself is safe once it is parsed. JSON within its strings is parsed later, for the chat
template: nested too deep it exhausts the stack, and an escaped lone surrogate becomes a string that no encoder
takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

MAX_DEPTH = 128  # levels of objects and arrays; Python's parser and the templates' filters recurse over them

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_LEVELS = bytes.maketrans(b"[{]}", b"\1\1\2\2")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
_STEPS = (0, 1, -1)  # by the bytes of _LEVELS
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def fault(text: str) -> str | None:
    """Return why `text` cannot be used as JSON, as the end of a sentence.

    None for sound JSON, and for text that is not JSON.
    """
    if nesting(text) > MAX_DEPTH:
        return f"must not be nested deeper than {MAX_DEPTH} levels"
    if _SURROGATE.search(text) is None:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return None if encodable(value) else r"must not contain a lone surrogate, an escape between \ud800 and \udfff"


def nesting(text: str) -> int:
    """Return how many objects and arrays are open at once at most, in linear time and without recursion.

    The text need not be JSON: brackets inside string literals do not count, brackets that are never closed do.
    """
    brackets = _STRING.sub(b"", text.encode("utf-8", "surrogatepass")).translate(_LEVELS, _NO_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0)


def occurrences(data: bytes, marks: Sequence[bytes], enough: int) -> int:
    """Return how often `marks` occur outside the strings of JSON `data`; exact only if more than `enough`.

    Strings are left out only then, since finding them takes some 10 ms per MB.
    """
    count = sum(map(data.count, marks))
    return sum(map(_STRING.sub(b"", data).count, marks)) if count > enough else count


def encodable(value: Any) -> bool:
    """Return whether all strings of a parsed JSON value can be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
