"""Interface of an engine that computes adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:  # the worker's side runs without torch
    from workers.engine.lora.weights import AdapterWeights


class AdapterReader(Protocol):
    """Reader of the adapters of one engine's model; may be called from any thread."""

    def load(self, path: str, digest: str | None = None) -> AdapterWeights:
        """Return an adapter, given its path as it was registered.

        Raises:
            AdapterMissing: there is no such folder.
            AdapterChanged: its contents do not have the digest.
            ConfigError: it cannot be used; the message names the file and the reason.
        """


@runtime_checkable
class SupportsAdapters(Protocol):
    """Engine that may compute adapters; `adapters` is None if it does not."""

    @property
    def adapters(self) -> AdapterReader | None: ...


def reader_of(engine: object) -> AdapterReader | None:
    """Return the reader of an engine's adapters; None if it computes none."""
    return engine.adapters if isinstance(engine, SupportsAdapters) else None
