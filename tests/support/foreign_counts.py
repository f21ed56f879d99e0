"""Counts of foreign entries that a backend has found."""

from __future__ import annotations

from shared.backend import Backend


def foreign(backend: Backend) -> dict[str, int]:
    assert backend.server is not None
    return dict(backend.server.foreign.found)
