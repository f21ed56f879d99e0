"""API as a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from shared.redis.embedded import EmbeddedServer
from tests.support.fakes import MODEL

MIB = 2**20
RUN = "from shared.settings import load; from producer_api.server import serve; serve(load().settings)"


@contextmanager
def running(valkey: EmbeddedServer, **environ: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the API as a process, and yield it with its URL, read from its log. `environ`: additional settings."""
    environment = {
        **os.environ,
        "HEADRACE_REDIS_URL": valkey.url,
        "HEADRACE_PORT": "0",
        "HEADRACE_MODEL": MODEL,
        "HEADRACE_LOG_FORMAT": "json",
        **{f"HEADRACE_{name}".upper(): value for name, value in environ.items()},
    }
    process = subprocess.Popen([sys.executable, "-c", RUN], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "http://" in line)
        yield process, "http://" + line.split("http://")[1].split('"')[0]
    finally:
        process.kill()
        process.communicate()
