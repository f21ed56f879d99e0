"""Webhook of a batch whose process is killed at a critical point."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.support.batch_client import BatchClient, line, until, with_tasks
from tests.support.waiting import LIMIT_S
from tests.support.webhook_receiver import SECRET, receiving

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="package")]

CRASH_INJECTION = Path(__file__).parents[2] / "support" / "crash_injection"
# how often the webhook arrives: a delivery that was not recorded before the kill is repeated
POINTS = {
    "producer_api.batch_runner.batch_runner:BatchRunner._ended": 1,  # the batch has ended; the sender was not woken
    "producer_api.webhooks.sender:WebhookSender._deliver": 1,  # the end is recorded, and the webhook not sent
    "producer_api.webhooks.sender:after_attempt": 2,
}


async def test_a_webhook_is_sent_although_its_process_dies(tmp_path: Path) -> None:
    """It arrives with the same id and body each time."""
    named = tmp_path / "fall"
    paths = os.pathsep.join([str(CRASH_INJECTION), os.environ.get("PYTHONPATH", "")])
    watched = {"PYTHONPATH": paths, "CRASH_AT": " ".join(POINTS), "CRASH_FILE": str(named)}
    hooks = {"webhook_secrets": SECRET, "webhook_allow_http": True, "webhook_allow_private": True}
    async with (
        with_tasks(tmp_path, tasks=1, webhook_timeout=60, environment={"api": watched}, **hooks) as cluster,
        cluster.reviving(),
        receiving() as receiver,
    ):
        client = BatchClient(cluster.urls[0])
        for point, times in POINTS.items():
            named.write_text(point)
            hook = {"url": receiver.url()}
            made = await asyncio.to_thread(client.start, [line("a")], webhook=hook)
            async with asyncio.timeout(LIMIT_S):
                while named.exists():  # until a process was killed at this point
                    await asyncio.sleep(0.02)
            await asyncio.to_thread(cluster.expire_webhook, made.id)
            batch = await until(client, made.id, lambda batch: batch.webhook["state"] == "delivered")
            assert batch.status == "completed"
            deliveries = [each for each in receiver.received if each.json["data"]["id"] == made.id]
            assert len(deliveries) == times
            assert len({(each.headers["webhook-id"], each.body) for each in deliveries}) == 1
