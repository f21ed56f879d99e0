"""API served on a free port or called in memory, and helpers for its requests and streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI

from producer_api.admin_app import create_admin_app
from producer_api.server import Server, listen
from shared.backend import Backend
from shared.settings import Settings
from tests.support.fakes import MODEL


@asynccontextmanager
async def serving(settings: Settings, backend: Backend) -> AsyncIterator[str]:
    """Run the API on a free port until the body ends, and yield its URL."""
    listener = listen(settings)
    server = Server(settings, backend)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    host, port = listener.getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        await task


def calling(app: FastAPI, key: str | None = None) -> httpx.AsyncClient:
    """Return a client that calls the application without a socket, with an API key if given."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)


def administering(app: FastAPI, key: str | None = None) -> httpx.AsyncClient:
    """Return a client of the admin application that shares its services with `app`."""
    return calling(create_admin_app(app.state.context), key)


def chat(**fields: object) -> dict[str, object]:
    """Return the body of a small chat request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}


async def frames(response: httpx.Response) -> AsyncIterator[dict[str, str]]:
    """Yield the server-sent events of a response; a comment as {"": text}."""
    frame: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line.startswith(":"):
            yield {"": line.removeprefix(": ")}
        elif line:
            name, _, value = line.partition(":")
            frame[name] = value.removeprefix(" ")
        elif frame:
            yield frame
            frame = {}
