"""Recording of administrative actions without a reachable audit log."""

from __future__ import annotations

from structlog.testing import capture_logs

from producer_api.auth.client_address import Client
from producer_api.auth.principal import Principal
from producer_api.http.audit import audited
from shared.accounts.audit_log import Action, MemoryAuditLog
from shared.errors import Unavailable


class Unreachable(MemoryAuditLog):
    async def add(self, action: Action) -> None:
        raise Unavailable("Redis cannot be reached")


async def test_an_action_that_cannot_be_recorded_is_logged_as_a_whole() -> None:
    caller = Principal("ops", key_id="k1", client=Client(address="192.0.2.1"))
    with capture_logs() as logged:
        async with audited(Unreachable(), caller, "POST /x", "name=m") as outcome:
            outcome.status, outcome.code = 409, "conflict"
    [line] = [each for each in logged if each["event"] == "audit_log_unavailable"]
    expected = {"key_id": "k1", "tenant": "ops", "address": "192.0.2.1", "action": "POST /x", "target": "name=m"}
    assert {**line, **expected, "status": 409, "code": "conflict"} == line
