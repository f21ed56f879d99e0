"""Bodies that are read outside of HTTP: lines of batches, and tasks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from producer_api.batch_runner.line_body import read_body
from producer_api.routes.catalog import BATCHABLE

INPUTS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/completions": {"prompt": "x"},
    "/v1/embeddings": {"input": "x"},
    "/v1/responses": {"input": "x"},
    **{key: {"queries": "x", "documents": "y"} for key in ("/score", "/v1/score")},
    **{key: {"query": "x", "documents": ["y"]} for key in ("/rerank", "/v1/rerank", "/v2/rerank")},
    **{key: {"input": "x"} for key in ("/classify", "/pooling")},
}


@pytest.mark.parametrize("url", BATCHABLE)
@pytest.mark.parametrize(
    ("given", "classed"),
    [({}, False), ({"priority": 0}, False), ({"priority": None}, False), ({"priority": 1}, True)],
)
def test_priority_0_names_no_class(url: str, given: dict[str, Any], classed: bool) -> None:
    """It stands for the default, which a plan, a batch or a task may set."""
    body = json.dumps({"model": "m", **INPUTS[url], **given}).encode()
    assert read_body(url, body, "t", strict_fields=False).classed == classed
