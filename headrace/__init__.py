"""Headrace: queue-driven asynchronous LLM inference, where an accepted answer is never lost."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.client import AsyncHeadraceClient, HeadraceClient

__version__ = "0.1.0"
__all__ = ["AsyncHeadraceClient", "HeadraceClient", "__version__"]


def __getattr__(name: str) -> Any:
    """The clients, imported when first asked for: `headrace --help` needs no HTTP."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from headrace import client

    return getattr(client, name)
