"""The private attribute of uvicorn that Headrace uses; tests/producer_api/http/test_uvicorn_internals.py covers
it.
"""

from __future__ import annotations

import uvicorn


def forget_signals(server: uvicorn.Server) -> None:
    """Let `capture_signals` return instead of raising the signals that it caught once more."""
    server._captured_signals.clear()
