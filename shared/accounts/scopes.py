"""What a caller may do: which models, routes and classes it may use, and whether it administers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

from shared.errors import ConfigError
from shared.models.names import MODEL_NAME
from shared.protocol import PriorityClass

TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@|+/-]{0,127}")
# The groups that routes belong to; a route of none of them cannot be made.
ROUTES = (
    *("chat", "completions", "responses", "embeddings", "tokenize", "models"),
    *("files", "batches", "jobs", "dead-letters"),
)
CLASSES = tuple(priority.value for priority in PriorityClass)
MOST = 64  # names of one kind


@dataclass(frozen=True)
class Scopes:
    """Names that may be used; None for all of them."""

    admin: bool = False
    models: frozenset[str] | None = None
    routes: frozenset[str] | None = None
    classes: frozenset[str] | None = None

    @classmethod
    def of(
        cls,
        *,
        admin: bool = False,
        models: Iterable[str] | None = None,
        routes: Iterable[str] | None = None,
        classes: Iterable[str] | None = None,
    ) -> Self:
        """Raises ConfigError for a name that nothing can have."""
        return cls(
            admin=admin,
            models=_names("model", models, lambda name: MODEL_NAME.fullmatch(name) is not None),
            routes=_names("route", routes, ROUTES.__contains__, f": one of {', '.join(ROUTES)}"),
            classes=_names("class", classes, CLASSES.__contains__, f": one of {', '.join(CLASSES)}"),
        )


def checked_tenant(name: str) -> str:
    """Raises ConfigError."""
    if not TENANT.fullmatch(name):
        raise ConfigError("a tenant's name has 1 to 128 letters, digits and ._:@|+/-, a letter or digit first")
    return name


def _names(
    kind: str, given: Iterable[str] | None, known: Callable[[str], bool], hint: str = ""
) -> frozenset[str] | None:
    if given is None:
        return None
    names = frozenset(given)
    if wrong := sorted(name for name in names if not known(name)):
        raise ConfigError(f"{wrong[0][:64]!r} cannot be a {kind}{hint}")
    if len(names) > MOST:
        raise ConfigError(f"at most {MOST} names of a {kind} can be given")
    return names
