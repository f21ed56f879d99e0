"""Parameters of several endpoints in the OpenAPI document, and their shared response.

Endpoints declare them, so this module imports nothing that only builds the document.
"""

from __future__ import annotations

from typing import Any, Literal

from producer_api.http.endpoint import ResponseDoc
from shared.validation.objective import OBJECTIVE_HEADERS
from shared.validation.ttft_target import BEST_EFFORT, MAX_TARGET_MS, POLICY_HEADER, REFUSE, TARGET_HEADERS

Described = dict[str, Any]


def parameter(name: str, where: Literal["query", "header"], description: str, **schema: Any) -> Described:
    """Return the description of an optional parameter."""
    return {"name": name, "in": where, "required": False, "schema": schema, "description": description}


IDEMPOTENCY = parameter(
    "Idempotency-Key",
    "header",
    "a request that is sent again with the same key and body runs once, and gets the answer of the first",
    type="string",
    pattern="^[!-~]{1,255}$",
)
LAST_EVENT_ID = parameter(
    "Last-Event-ID", "header", "the stream continues after the frame with this id", type="integer", minimum=-1
)
LAST_EVENT_IDS = parameter(
    "Last-Event-ID",
    "header",
    "the stream continues after the frame with this id, which has a number for each prompt, joined by dots",
    type="string",
    pattern=r"^(-1|[0-9]{1,15})(\.(-1|[0-9]{1,15}))*$",
)
_EARLIEST = "target for the first token, in ms after admission; in a class and tenant, the earliest due goes first"
_TARGETS = dict(zip(TARGET_HEADERS, (_EARLIEST, f"the same; ignored beside {TARGET_HEADERS[0]}"), strict=True))
_REFUSE = f"with `{REFUSE}`, a request that is not expected to meet its target is refused; it needs a target"
_CLASS = "llm-d's objective: one that is named as a class takes the place of the request's class"
TURN = (  # of every request that is charged, since it goes through the queue
    *(
        parameter(n, "header", text, type="integer", minimum=1, maximum=MAX_TARGET_MS)
        for n, text in _TARGETS.items()
    ),
    parameter(POLICY_HEADER, "header", _REFUSE, type="string", enum=[BEST_EFFORT, REFUSE], default=BEST_EFFORT),
    *(parameter(name, "header", _CLASS, type="string") for name in OBJECTIVE_HEADERS),
)
NOTHING_LEFT = ResponseDoc("the answer has ended: there is nothing after Last-Event-ID", status=204)
