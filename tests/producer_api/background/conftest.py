"""Backends for the sweeper, which works the same on a real server and in memory."""

from __future__ import annotations

from tests.support.backends import backend, on_redis

__all__ = ["backend", "on_redis"]
