"""Notices that the machine will be taken away, from the metadata service of a cloud.

References: AWS "Spot Instance interruption notices" (IMDSv2), Google Cloud "Preemptible VM instances" (metadata
`instance/preempted`), Azure "Scheduled Events for Linux VMs".

Nothing that the service does harms the worker: redirects are not followed, an answer is bounded in time and
size, and only a clear notice counts.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import structlog

from shared.settings import Settings

LINK_LOCAL = "http://169.254.169.254"
POLL_S = 2.0  # between two questions; AWS gives 120 s, the others at least 30 s
ANSWER_LIMIT_S = 5.0
LONG_POLL_S = 60  # for which Google's service may keep a question
MAX_BYTES = 65_536
AWS_TOKEN = {"x-aws-ec2-metadata-token-ttl-seconds": "300"}
AWS_ACTIONS = ("terminate", "stop", "hibernate")
AZURE_EVENTS = ("Preempt", "Terminate")
AZURE_EVENTS_PATH = "/metadata/scheduledevents?api-version=2020-07-01"
AZURE_NAME_PATH = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"

log = structlog.get_logger(__name__)


class NoAnswer(Exception):
    """The metadata service did not answer as documented."""


class Metadata:
    """Client of a metadata service."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, follow_redirects=False, trust_env=False)

    async def ask(
        self, path: str, headers: dict[str, str], *, method: str = "GET", limit: float = ANSWER_LIMIT_S
    ) -> tuple[int, bytes]:
        """Return status and body. Raises NoAnswer."""
        try:
            async with asyncio.timeout(limit), self._http.stream(method, path, headers=headers) as response:
                body = b""
                async for part in response.aiter_raw():
                    body += part
                    if len(body) > MAX_BYTES:
                        raise NoAnswer(f"an answer of more than {MAX_BYTES} bytes")
                return response.status_code, body
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            raise NoAnswer(type(error).__name__) from error

    async def close(self) -> None:
        await self._http.aclose()


async def aws(metadata: Metadata) -> bool:
    """Return True once the instance will be interrupted."""
    status, token = await metadata.ask("/latest/api/token", AWS_TOKEN, method="PUT")
    if status != 200 or not token.isascii() or not token.strip():
        raise NoAnswer(f"status {status} for a session token")
    headers = {"x-aws-ec2-metadata-token": token.decode().strip()}
    status, body = await metadata.ask("/latest/meta-data/spot/instance-action", headers)
    if status == 404:
        return False
    found = _json(status, body)
    return isinstance(found, dict) and found.get("action") in AWS_ACTIONS


async def gcp(metadata: Metadata) -> bool:
    """Return True once the instance is preempted; the service keeps the question while it is not."""
    path, headers = "/computeMetadata/v1/instance/preempted", {"metadata-flavor": "Google"}
    status, body = await metadata.ask(path, headers)
    if status == 200 and body.strip() == b"FALSE":
        waiting = f"{path}?wait_for_change=true&timeout_sec={LONG_POLL_S}"
        status, body = await metadata.ask(waiting, headers, limit=LONG_POLL_S + ANSWER_LIMIT_S)
    if status != 200 or body.strip() not in (b"TRUE", b"FALSE"):
        raise NoAnswer(f"status {status}, and neither TRUE nor FALSE")
    return body.strip() == b"TRUE"


async def azure(metadata: Metadata) -> bool:
    """Return True once this machine is scheduled to be evicted; the events of its neighbours are listed too."""
    headers = {"metadata": "true"}
    found = _json(*await metadata.ask(AZURE_EVENTS_PATH, headers))
    events = found.get("Events") if isinstance(found, dict) else None
    if not isinstance(events, list):
        raise NoAnswer("no list of events")
    ending = [each for each in events if isinstance(each, dict) and each.get("EventType") in AZURE_EVENTS]
    if not ending:
        return False
    status, name = await metadata.ask(AZURE_NAME_PATH, headers)
    if status != 200:
        raise NoAnswer(f"status {status} for the name of the machine")
    own = name.decode(errors="replace").strip()
    named = (each.get("Resources") for each in ending)
    return any(isinstance(each, list) and own in each for each in named)


CLOUDS: dict[str, tuple[str, Callable[[Metadata], Awaitable[bool]]]] = {
    "aws": (LINK_LOCAL, aws),
    "gcp": ("http://metadata.google.internal", gcp),
    "azure": (LINK_LOCAL, azure),
}


async def wait_for_notice(settings: Settings) -> None:
    """Return once the machine will be taken away; never if `spot_notices` is off."""
    if settings.spot_notices == "off":
        await asyncio.get_running_loop().create_future()
    url, is_ending = CLOUDS[settings.spot_notices]
    metadata, complaint = Metadata(settings.spot_notices_url or url), ""
    try:
        while True:
            try:
                if await is_ending(metadata):
                    log.warning("spot_notice", cloud=settings.spot_notices)
                    return
                complaint = ""
            except NoAnswer as error:
                if str(error) != complaint:
                    complaint = str(error)
                    log.warning("spot_notices_unreadable", cloud=settings.spot_notices, error=complaint)
            await asyncio.sleep(POLL_S)
    finally:
        await metadata.close()


def _json(status: int, body: bytes) -> Any:
    """Return the JSON of an answer. Raises NoAnswer."""
    if status != 200:
        raise NoAnswer(f"status {status}")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NoAnswer("the answer is no JSON") from error
