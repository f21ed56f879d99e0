"""`python -m headrace.bench.peers.peer_llamacpp FOLDER SEED CONCURRENCY`: llama.cpp's server on the mix, with Q8_0.

It prints its figures as JSON. The model is converted once, in the folder of the server that scripts/peers built.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from headrace.bench.harness.report import decode_rate
from headrace.bench.harness.server import running_server
from headrace.bench.harness.workload import WorkItem, make_mix, peer_mix
from headrace.bench.peers.peers import peer_folder
from shared.errors import ConfigError
from shared.runtime.sockets import free_port

HOST = "127.0.0.1"
MAX_MODEL_LEN = 512  # tokens of prompt and answer; the mix has fewer
START_TIMEOUT_S = 120.0
REQUEST_TIMEOUT_S = 600.0


def convert_to_gguf(folder: Path, peer: Path) -> Path:
    """Return the Q8_0 file of a model folder; convert the model if needed."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    target = peer / "models" / f"{folder.name}-{name}-q8_0.gguf"
    if not target.is_file():
        target.parent.mkdir(exist_ok=True)
        made = target.with_suffix(".part")
        script = peer / "llama.cpp" / "convert_hf_to_gguf.py"
        command = [sys.executable, str(script), str(folder), "--outtype", "q8_0", "--outfile", str(made)]
        environment = {**os.environ, "PYTHONPATH": str(peer / "python")}
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment)
        made.rename(target)
    return target


@dataclass(frozen=True)
class Answer:
    """The server's count of output tokens, and its seconds from the first of them to the last."""

    tokens: int
    decode_seconds: float


def answer(http: httpx.Client, item: WorkItem) -> Answer:
    """Send one request and return the server's figures."""
    body = {
        "messages": [{"role": "user", "content": item.prompt}],
        "max_tokens": item.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    found = http.post("/v1/chat/completions", json=body).raise_for_status().json()
    return Answer(int(found["usage"]["completion_tokens"]), float(found["timings"]["predicted_ms"]) / 1000)


def server_command(folder: Path, concurrency: int, port: int) -> list[str]:
    """Return the command that serves a model folder. Raises ConfigError if the server is not installed."""
    peer = peer_folder("llamacpp")
    server = peer / "build/bin/llama-server"
    if not server.is_file():
        raise ConfigError("llama.cpp's server is not installed: run scripts/peers llamacpp")
    command = [str(server), "--model", str(convert_to_gguf(folder, peer))]
    threads = os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count() or 1)  # as in Headrace's engine
    command += ["--host", HOST, "--port", str(port), "--threads", threads]
    return [*command, "--parallel", str(concurrency), "--ctx-size", str(MAX_MODEL_LEN * concurrency)]


@contextmanager
def llama_server(folder: Path, concurrency: int, *options: str) -> Iterator[str]:
    """Run the server until the body ends, and yield its address. Raises HeadraceError if it does not start."""
    port = free_port(HOST)
    url = f"http://{HOST}:{port}"
    with running_server([*server_command(folder, concurrency, port), *options], url, timeout=START_TIMEOUT_S):
        yield url


def main(folder: str, seed: int, concurrency: int) -> None:
    with (
        llama_server(Path(folder), concurrency) as url,
        httpx.Client(base_url=url, timeout=REQUEST_TIMEOUT_S) as http,
        ThreadPoolExecutor(concurrency) as clients,
    ):
        for item in make_mix(seed + 2, 2):
            answer(http, item)
        begin = time.perf_counter()
        answers = list(clients.map(lambda item: answer(http, item), peer_mix(seed, concurrency)))
        seconds = time.perf_counter() - begin
    tokens = sum(each.tokens for each in answers)
    decoding = decode_rate(tokens - len(answers), sum(each.decode_seconds for each in answers if each.tokens > 1))
    print(json.dumps({"tokens": tokens, "rate": tokens / seconds, "decode_rate": decoding}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
