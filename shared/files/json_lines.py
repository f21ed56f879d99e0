"""Lines of a JSON Lines file, also as tools for Windows write them: with a byte order mark, or a final Ctrl-Z."""

from __future__ import annotations

import codecs

CTRL_Z = b"\x1a"  # the end of a text file under DOS; some tools still write it
ENCODINGS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


def json_text(line: bytes, *, first: bool) -> bytes:
    """Return the JSON of a line: without white space, and what is at the beginning or at the end of a file."""
    if first:
        line = line.removeprefix(codecs.BOM_UTF8)
    if not line.endswith(b"\n"):
        line = line.removesuffix(CTRL_Z)
    return line.strip()


def foreign_encoding(start: bytes) -> str | None:
    """Return the encoding of a file by its first bytes, if it is not UTF-8.

    JSON begins with two ASCII characters, so zeros beside them show the width of a character (RFC 4627, 3).
    """
    for name, marks in ENCODINGS.items():
        if start.startswith(marks):
            return name
    zeros = [byte == 0 for byte in start[:4]]
    if len(zeros) < 4 or not any(zeros):
        return None
    return {2: "UTF-16", 3: "UTF-32"}.get(sum(zeros))
