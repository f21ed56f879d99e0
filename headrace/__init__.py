"""Headrace: queue-driven asynchronous LLM inference. An accepted request is never lost."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shared.version import VERSION as __version__

if TYPE_CHECKING:
    from headrace.client import AsyncHeadraceClient, HeadraceClient
    from headrace.client.openai_internals import once
    from headrace.llm import LLM, SamplingParams, StructuredOutputsParams
    from headrace.llm_adapters import LoRARequest

__all__ = [
    "LLM",
    "AsyncHeadraceClient",
    "HeadraceClient",
    "LoRARequest",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
    "once",
]

_MODULES = {
    "AsyncHeadraceClient": "headrace.client",
    "HeadraceClient": "headrace.client",
    "LLM": "headrace.llm",
    "LoRARequest": "headrace.llm_adapters",
    "SamplingParams": "headrace.llm",
    "StructuredOutputsParams": "headrace.llm",
    "once": "headrace.client.openai_internals",
}


def __getattr__(name: str) -> Any:
    """Import a name on first use, so that `headrace --help` imports neither httpx nor torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
