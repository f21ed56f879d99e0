"""`python -m tests.clients [NAME …]`: run real clients against a real server; see `scripts/test-clients`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.models.model_store import ModelRepository
from shared.runtime.sockets import free_port
from shared.settings import load
from tests.clients.catalog import CLIENTS, Client
from tests.clients.matrix import try_client
from tests.clients.page import update
from tests.support import redis_servers
from tests.support.launched_server import Launched, new_key
from tests.support.tensor_repository import write_repository

MODEL, EMBEDDER = "smollm2", "all-minilm-l6-v2"
START_LIMIT_S = 1800
# limits of the server that a stalled machine does not reach
SERVER_LIMITS = {
    "lease": 60,
    "step_timeout": 0,
    "redis_timeout": 30,
    "rate_limit_timeout": 30,
    "head_timeout": 60,
    "body_timeout": 300,
}


@contextmanager
def running() -> Iterator[dict[str, str]]:
    """Run a server, and yield the environment of the programs."""
    with tempfile.TemporaryDirectory() as folder, redis_servers.running(store := redis_servers.Node(Path(folder))):
        grpc_port = free_port("127.0.0.1")
        options = ("--embedding-model", EMBEDDER, "--grpc-port", str(grpc_port), "--auth")
        models = Path(folder) / "models"
        write_repository(models)
        server = Launched(
            Path(folder),
            *options,
            grpc_reflection=True,
            redis_url=store.url,
            model=MODEL,
            model_repository=models,
            **SERVER_LIMITS,
        )
        try:
            server.await_ready(START_LIMIT_S)
            yield {
                "HEADRACE_URL": server.url,
                "HEADRACE_GRPC": f"127.0.0.1:{grpc_port}",
                "HEADRACE_REDIS": store.url,
                "HEADRACE_MODEL": MODEL,
                "HEADRACE_MODEL_FOLDER": str(ModelRepository(load({"model": MODEL}).settings).folder()),
                "HEADRACE_EMBEDDER": EMBEDDER,
                "HEADRACE_KEY": new_key(Path(folder), "--label", "clients"),
            }
        finally:
            server.stop()


def chosen(words: list[str]) -> list[Client]:
    """Return the clients whose names or programs contain a word; all without words."""
    return [each for each in CLIENTS if not words or any(word in f"{each.name} {each.program}" for word in words)]


def main(words: list[str]) -> int:
    clients = chosen(words)
    if not clients:
        print(f"no client is named {' or '.join(words)}", file=sys.stderr)
        return 2
    with running() as server:
        for client in clients:
            row = try_client(client, server)
            print("\n".join(row.lines()), flush=True)
            update(row)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
