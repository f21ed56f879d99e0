"""The Python client of Headrace's HTTP API, blocking and asynchronous: both run the same flows.

It knows HTTP alone: nothing of Redis or of engines.
"""

from headrace.client.asynchronous import AsyncHeadraceClient
from headrace.client.blocking import HeadraceClient
from headrace.client.operations import JobEvent

__all__ = ["AsyncHeadraceClient", "HeadraceClient", "JobEvent"]
