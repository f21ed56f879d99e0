"""Record of a batch, as the API creates it."""

from __future__ import annotations

from typing import Any

from shared.batches.store import Batch


def batch_record(name: str = "batch_1", **fields: Any) -> Batch:
    """Return a batch of chat completions that does not expire."""
    given = {
        "tenant": "default",
        "endpoint": "/v1/chat/completions",
        "input_file_id": "file-1",
        "completion_window": "24h",
        "created_at": 1.0,
        "expires_at": 9e9,
        "output_life": 60,
    }
    return Batch(id=name, **{**given, **fields})
