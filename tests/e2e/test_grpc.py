"""Separate gRPC client program, generated from the service's definition, against all processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.launched_server import Launched
from workers.scripted_engine import expected

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TOKENS = 3000
PROMPT = "by gRPC [pace 2]"  # slow enough that both processes die before the end
PROGRAM = """
import sys
import grpc
from producer_api.rpc import inference_pb2 as pb, inference_pb2_grpc

stub = inference_pb2_grpc.InferenceStub(grpc.insecure_channel(sys.argv[1]))
job = pb.JobRequest(model="scripted", prompt=sys.argv[2], max_tokens=int(sys.argv[3]))
state, seen, cuts = "", 0, 0
while not state:
    try:
        request = pb.GenerateRequest(job=job, from_seq=seen)
        key = [("idempotency-key", "mine")]
        for event in stub.Generate(request, metadata=key, wait_for_ready=True, timeout=120):
            if event.HasField("tokens"):
                assert event.tokens.seq == seen, (event.tokens.seq, seen)
                for token in event.tokens.tokens:
                    print(token.id, flush=True)
                seen += len(event.tokens.tokens)
            state = event.end.state
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        cuts += 1
print(state, cuts)
"""


def test_an_answer_survives_the_death_of_each_process(scripted_up: Launched, tmp_path: Path) -> None:
    """Given a stream, if the worker dies and then the API, the client gets each token once, in order."""
    definition = "producer_api/rpc/inference.proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", "--python_out=.", "--grpc_python_out=."]
    subprocess.run([*command, definition], cwd=tmp_path, check=True)
    (tmp_path / "program.py").write_text(PROGRAM)
    scripted_up.await_line("^grpc: ")
    address = next(found[1] for line in scripted_up.lines if (found := re.match(r"grpc: (\S+)", line)))
    program = subprocess.Popen(
        [sys.executable, "program.py", address, PROMPT, str(TOKENS)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},  # its own modules
    )
    assert program.stdout is not None
    with program:
        lines = [program.stdout.readline()]
        os.kill(scripted_up.busy_worker(), signal.SIGKILL)
        lines += [program.stdout.readline() for _ in range(TOKENS // 3)]
        scripted_up.kill("api")
        *rest, end = program.stdout.read().splitlines()

    tokens = [int(each) for each in [*lines, *rest]]
    assert tokens == [expected([ord(character) for character in PROMPT], 0, p) for p in range(TOKENS)]
    state, cuts = end.split()
    assert (state, program.returncode) == ("completed", 0)
    assert int(cuts) >= 1
