"""Real model servers, as scripts/peers installs them, which tests kill and start again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

from headrace.bench.peers.peer_llamacpp import server_command
from headrace.bench.peers.peer_vllm import ENVIRONMENT as VLLM_ENVIRONMENT
from headrace.bench.peers.peers import peer_folder
from shared.runtime.processes import die_with_parent
from shared.runtime.sockets import free_port

HOST = "127.0.0.1"
MODEL = "smollm2"
TEMPLATE = Path(__file__).parents[1] / "upstream/tools.jinja"  # SmolLM2's own has no tools
SEQUENCES = 16
START_TIMEOUT_S = 600.0  # vLLM compiles
CONTEXT_TOKENS = 512
# By default vLLM binds a thread to each core, and each step waits for all of them: it generated 0.5 tokens/s beside
# other programs, at a load of 24 on two cores.
ON_SHARED_CORES = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


@dataclass
class RealUpstream:
    """One server; `busy` returns how many answers it is generating."""

    command: list[str]
    port: int
    log: Path
    busy: Callable[[str], int]
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    process: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> str:
        return f"http://{HOST}:{self.port}"

    def spawn(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509  a single prctl call, no locks
            )

    def await_healthy(self) -> None:
        """Wait until the server answers, for at most START_TIMEOUT_S."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self.process is not None and self.process.poll() is None, "the server ended"
            try:
                if httpx.get(f"{self.root}/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise AssertionError("the server is not healthy")

    def kill(self) -> None:
        """Kill the server and the processes that it started."""
        if self.process is not None:
            with suppress(ProcessLookupError):  # it has ended
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def await_idle(self) -> None:
        deadline = time.monotonic() + 30
        while (found := self.busy(self.root)) > 0:
            assert time.monotonic() < deadline, f"{found} answers still run"
            time.sleep(0.05)

    def post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask the server itself, without a queue."""
        response = httpx.post(f"{self.root}/v1{route}", json={"model": MODEL, **body}, timeout=300)
        response.raise_for_status()
        found: dict[str, Any] = response.json()
        return found


def llamacpp(folder: Path, log: Path) -> RealUpstream:
    port = free_port(HOST)
    options = ["--alias", MODEL, "--slots", "--jinja", "--chat-template-file", str(TEMPLATE)]
    return RealUpstream([*server_command(folder, SEQUENCES, port), *options], port, log, _busy_slots)


def vllm(folder: Path, log: Path) -> RealUpstream:
    port = free_port(HOST)
    python = str(peer_folder("vllm") / "bin/python")
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--host", HOST]
    command += ["--port", str(port), "--served-model-name", MODEL, "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", str(CONTEXT_TOKENS), "--max-num-seqs", str(SEQUENCES)]
    command += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--chat-template", str(TEMPLATE)]
    return RealUpstream(command, port, log, _running_requests, VLLM_ENVIRONMENT | ON_SHARED_CORES)


SERVERS: dict[str, Callable[[Path, Path], RealUpstream]] = {"llamacpp": llamacpp, "vllm": vllm}


def _busy_slots(root: str) -> int:
    return sum(slot["is_processing"] for slot in httpx.get(f"{root}/slots").json())


def _running_requests(root: str) -> int:
    lines = httpx.get(f"{root}/metrics").text.splitlines()
    found = [line for line in lines if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting{"))]
    return round(sum(float(line.rsplit(" ", 1)[1]) for line in found))
