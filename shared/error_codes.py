"""The classes of errors by their codes, for errors that were stored or sent as JSON."""

from __future__ import annotations

from shared.errors import HeadraceError


def error_classes() -> dict[str, type[HeadraceError]]:
    """Return every error class by its code, so that a stored error can be raised again."""
    found: dict[str, type[HeadraceError]] = {}
    pending = [HeadraceError]
    while pending:
        cls = pending.pop()
        found.setdefault(cls.code, cls)  # a subclass without a code of its own appears as its parent
        pending.extend(cls.__subclasses__())
    return found
