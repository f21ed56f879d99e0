"""Scopes: the models, routes and classes that a caller may use, and whether it may administer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

from shared.errors import ConfigError
from shared.models.names import MODEL_NAME
from shared.protocol import PriorityClass

TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@|+/-]{0,127}")
# Every route belongs to one of these groups.
ROUTES = (
    *("chat", "completions", "responses", "embeddings", "tokenize", "models", "predict"),
    *("files", "batches", "jobs", "dead-letters"),
)
CLASSES = tuple(priority.value for priority in PriorityClass)
MAX_NAMES = 64  # of one kind


@dataclass(frozen=True)
class Scopes:
    """Names that a caller may use; None means all."""

    admin: bool = False
    models: frozenset[str] | None = None
    routes: frozenset[str] | None = None
    classes: frozenset[str] | None = None

    @classmethod
    def parse(
        cls,
        *,
        admin: bool = False,
        models: Iterable[str] | None = None,
        routes: Iterable[str] | None = None,
        classes: Iterable[str] | None = None,
    ) -> Self:
        """Validate names. Raises ConfigError."""
        return cls(
            admin=admin,
            models=_names("model", models, lambda name: MODEL_NAME.fullmatch(name) is not None),
            routes=_names("route", routes, ROUTES.__contains__, f"; allowed: {', '.join(ROUTES)}"),
            classes=_names("class", classes, CLASSES.__contains__, f"; allowed: {', '.join(CLASSES)}"),
        )


def checked_tenant(name: str) -> str:
    """Return a valid tenant name. Raises ConfigError."""
    if not TENANT.fullmatch(name):
        raise ConfigError(
            "a tenant name must have 1 to 128 letters, digits and ._:@|+/-, and begin with a letter or digit"
        )
    return name


def _names(
    kind: str, given: Iterable[str] | None, known: Callable[[str], bool], hint: str = ""
) -> frozenset[str] | None:
    if given is None:
        return None
    names = frozenset(given)
    if wrong := sorted(name for name in names if not known(name)):
        raise ConfigError(f"{wrong[0][:64]!r} is not a valid {kind}{hint}")
    if len(names) > MAX_NAMES:
        raise ConfigError(f"at most {MAX_NAMES} {kind} names are allowed, got {len(names)}")
    return names
