"""The ends of requests reach all that wait for them."""

from __future__ import annotations

from producer_api.batch_runner.completion_listener import CompletionListener
from shared.backend import Backend


async def test_each_of_several_callers_learns_of_an_end(backend: Backend) -> None:
    """A process may run a line twice, if a chunk is claimed again while it still works on it."""
    listener = CompletionListener(backend.token_log, backend.live)
    with listener.waiting_for("gone") as first:
        with listener.waiting_for("gone"):
            pass
        with listener.waiting_for("gone") as second:
            await listener.check(["gone"])
        assert first.done()
        assert second.done()
