"""Settings of a Triton server that clients may read, and what is refused by name.

The settings of Headrace decide over logs and traces; a client that asks for what is so already gets it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from shared.errors import NotSupported

LOGGING: Mapping[str, Any] = MappingProxyType(
    {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }
)
TRACING: Mapping[str, Any] = MappingProxyType(
    {
        "trace_level": ["OFF"],
        "trace_rate": "1000",
        "trace_count": "-1",
        "log_frequency": "0",
        "trace_file": "",
        "trace_mode": "triton",
    }
)


def check_unchanged(wanted: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise NotSupported for the first setting that would have another value; None means no change."""
    for name, value in wanted.items():
        if value is not None and (name not in current or current[name] != value):
            raise NotSupported(f"{name[:64]} cannot be changed here; see Headrace's own settings", param=name)


def shared_memory_refusal(kind: str) -> NotSupported:
    return NotSupported(f"{kind} shared memory is not supported: send the data in the request")
