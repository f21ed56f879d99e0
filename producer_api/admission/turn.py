"""The turn of a request in the queue: the class and the target that its caller asks for, and may have."""

from __future__ import annotations

from producer_api.auth.principal import Principal
from shared.protocol import Request
from shared.validation.objective import with_objective
from shared.validation.ttft_target import with_target


def with_turn(draft: Request, principal: Principal) -> Request:
    """Return `draft` with the class and the target in the headers that came with it.

    Raises PermissionDenied if the caller may not use the model or the class; InvalidRequest.
    """
    principal.check_model(draft.model)
    headers = principal.client.turn_headers
    draft = with_objective(with_target(draft, headers), headers)
    principal.check_class(draft.priority)
    return draft
