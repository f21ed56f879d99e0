"""A batch's end is told though the process that should tell it is killed there and then."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.producer_api.batch_runner.conftest import BatchClient, line, with_tasks
from tests.producer_api.batch_runner.test_batches import until
from tests.producer_api.webhooks.conftest import SECRET, receiving

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="package")]

FALLING = Path(__file__).parents[3] / "support" / "falling"
# with how often the end is told: after a fall between the telling and its record nobody knows that it was
POINTS = {
    "producer_api.batch_runner.batch_runner:BatchRunner._ended": 1,  # the batch has ended, and nobody was woken
    "producer_api.webhooks.sender:WebhookSender._deliver": 1,  # it is known to have, and not told
    "producer_api.webhooks.sender:after_attempt": 2,
}


async def test_an_end_is_told_whoever_falls(tmp_path: Path) -> None:
    """Given a batch with a webhook, If a process is killed between its end and the record of its telling, Expect it
    told all the same, each time by one id and with the same body.
    """
    named = tmp_path / "fall"
    paths = os.pathsep.join([str(FALLING), os.environ.get("PYTHONPATH", "")])
    watched = {"PYTHONPATH": paths, "FALL_AT": " ".join(POINTS), "FALL_FILE": str(named)}
    hooks = {"webhook_secrets": SECRET, "webhook_allow_http": True, "webhook_allow_private": True}
    async with (
        with_tasks(tmp_path, tasks=1, webhook_timeout=2, environment={"api": watched}, **hooks) as cluster,
        cluster.reviving(),
        receiving() as receiver,
    ):
        client = BatchClient(cluster.urls[0])
        for point, times in POINTS.items():
            named.write_text(point)
            hook = {"url": receiver.url()}
            made = await asyncio.to_thread(client.start, [line("a")], webhook=hook)
            batch = await until(client, made.id, lambda batch: batch.webhook["state"] == "delivered")
            assert not named.exists(), f"nothing fell at {point}"
            assert batch.status == "completed"
            told = [each for each in receiver.received if each.json["data"]["id"] == made.id]
            assert len(told) == times
            assert len({(each.headers["webhook-id"], each.body) for each in told}) == 1
