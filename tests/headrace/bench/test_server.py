"""Server as a process of a benchmark: start, stop, and its log if it does not start."""

from __future__ import annotations

import sys

import psutil
import pytest

from headrace.bench.harness.server import running_server
from shared.errors import HeadraceError
from shared.runtime.sockets import free_port

HEALTHY_SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
assert os.environ["GIVEN"] == "1"
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_runs_until_the_body_ends() -> None:
    port = free_port("127.0.0.1")
    command = [sys.executable, "-c", HEALTHY_SERVER, str(port)]
    with running_server(command, f"http://127.0.0.1:{port}", timeout=20, environment={"GIVEN": "1"}) as process:
        assert process.is_running()
    assert not psutil.pid_exists(process.pid)


def test_a_server_that_does_not_start_reports_its_log() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such ' + 'model')"]
    with (
        pytest.raises(HeadraceError, match="no such model"),
        running_server(command, "http://127.0.0.1:9", timeout=20),
    ):
        pass
