"""Names of fields as clients know them: `messages[0].content`."""

from __future__ import annotations

from collections.abc import Sequence

MAX_NAME_CHARS = 64  # of one name in a path; names may be the client's, of any length

Place = Sequence[int | str]  # of a field in a body: its names and indexes, outermost first


def field_path(place: Place) -> str:
    """Return ('messages', 0, 'role') as messages[0].role, with each name cut to MAX_NAME_CHARS."""
    path = ""
    for part in place:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part[:MAX_NAME_CHARS]}" if path else part[:MAX_NAME_CHARS]
    return path
