"""Recording of administrative actions, over HTTP and gRPC, with their outcome."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from producer_api.admission.deadline import redis_deadline
from producer_api.auth.principal import Principal
from producer_api.observability.request_log import CLIENT_CLOSED
from shared.accounts.audit_log import MAX_TARGET_CHARS, Action, AuditLog
from shared.errors import HeadraceError, Unavailable

log = structlog.get_logger(__name__)


@dataclass
class Outcome:
    """Result of an action: its HTTP status, and the code of its error."""

    status: int = 200
    code: str = ""


@asynccontextmanager
async def audited(audit: AuditLog, caller: Principal, action: str, target: str) -> AsyncIterator[Outcome]:
    """Record the action that the body carries out, however it ends.

    A caller without the admin scope is refused before, and not recorded: it could flood the log. If Redis cannot be
    reached, the action goes to the process's log instead.
    """
    outcome = Outcome(CLIENT_CLOSED, "cancelled")
    try:
        yield outcome
        if outcome.status == CLIENT_CLOSED:
            outcome.status, outcome.code = 200, ""
    except HeadraceError as error:
        outcome.status, outcome.code = error.status, error.code
        raise
    except Exception:
        outcome.status, outcome.code = 500, HeadraceError.code
        raise
    finally:
        await _record(audit, caller, action, target[:MAX_TARGET_CHARS], outcome)


async def _record(audit: AuditLog, caller: Principal, action: str, target: str, outcome: Outcome) -> None:
    done = Action(
        key_id=caller.key_id,
        tenant=caller.tenant,
        address=caller.client.address,
        action=action,
        target=target,
        status=outcome.status,
        code=outcome.code,
    )
    try:
        async with redis_deadline():
            await audit.add(done)
    except Unavailable as error:
        log.warning("audit_log_unavailable", error=error.message, key=done.key_id, action=action, target=target)
