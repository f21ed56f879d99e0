"""The class of a request by llm-d's objective, which a gateway sends as a header.

Reference: llm-d-router 0.10. An objective is the name of an InferenceObjective, and the names are the operator's.
One that is named as a class stands for that class; any other is ignored, as llm-d ignores an unknown one.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from shared.protocol import PriorityClass, Request

OBJECTIVE_HEADERS = (
    "x-llm-d-inference-objective",
    "x-gateway-inference-objective",
)  # the first that is sent counts
_CLASSES = {priority.value: priority for priority in PriorityClass}


def with_objective(draft: Request, headers: Mapping[str, str]) -> Request:
    """Return `draft` in the class that its objective names; otherwise in its own."""
    name = next((headers[each] for each in OBJECTIVE_HEADERS if each in headers), "")
    priority = _CLASSES.get(name.strip(" \t"))
    return draft if priority is None else msgspec.structs.replace(draft, priority=priority)
