"""Free text of a custom tool's call, decoded from the arguments of the function that stands for the tool."""

from __future__ import annotations

import json
import re

from shared.schemas.openai.response_tools import CUSTOM_INPUT

_BEGIN = re.compile(rf'\s*\{{\s*"{CUSTOM_INPUT}"\s*:\s*"')
# complete characters of a JSON string; the escapes of a surrogate pair are one
_CHARACTERS = re.compile(
    r"""(?:[^"\\]|\\["\\/bfnrt]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}
    |\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?=[^\\]|\\[^u])))*""",
    re.VERBOSE,
)


class CustomInput:
    """Decoder of one call's arguments, `{"input": "…"}`, as they arrive.

    Arguments of another form, which the grammar of a call does not allow, are the text themselves.
    """

    def __init__(self) -> None:
        self._rest = ""  # not decoded yet
        self._begun = False

    def feed(self, arguments: str) -> str:
        """Return the text that more of the arguments adds."""
        self._rest += arguments
        if not self._begun:
            if (begin := _BEGIN.match(self._rest)) is None:
                return ""
            self._begun, self._rest = True, self._rest[begin.end() :]
        found = _CHARACTERS.match(self._rest)
        assert found is not None, "it matches an empty text"
        self._rest = self._rest[found.end() :]
        text: str = json.loads(f'"{found[0]}"', strict=False)
        return text.encode(errors="replace").decode()  # half a surrogate pair has no encoding

    def end(self) -> str:
        """Return the text that the end of the arguments adds."""
        return "" if self._begun else self._rest
