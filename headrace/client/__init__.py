"""Python clients of Headrace's HTTP API, blocking and asynchronous. Both run the same flows."""

from headrace.client.asynchronous import AsyncHeadraceClient
from headrace.client.blocking import HeadraceClient
from headrace.client.stream_readers import JobEvent

__all__ = ["AsyncHeadraceClient", "HeadraceClient", "JobEvent"]
