"""NVIDIA's aiperf: a short benchmark of the chat route."""

import json
import os
import tempfile
from pathlib import Path

from features import KEY, LIMIT_S, MODEL, URL, feature, main, run_command

REQUESTS = 4
OPTIONS = {
    "--model": MODEL,
    "--url": URL,
    "--api-key": KEY,
    "--endpoint-type": "chat",
    "--tokenizer": os.environ["HEADRACE_MODEL_FOLDER"],
    "--concurrency": "2",
    "--request-count": str(REQUESTS),
    "--synthetic-input-tokens-mean": "16",
    "--output-tokens-mean": "8",
    "--ui-type": "none",
    "--workers-max": "1",
    "--record-processors": "1",
}
# its processes must start within half a minute by default, which depends on the machine
STARTUP = ("REGISTRATION_TIMEOUT", "START_TIMEOUT", "PROFILE_START_TIMEOUT", "CONNECTION_PROBE_TIMEOUT")
LIMITS = {f"AIPERF_SERVICE_{name}": str(LIMIT_S) for name in STARTUP} | {
    "AIPERF_SERVICE_COMMAND_RESPONSE_TIMEOUT": "1000",  # the greatest that it takes
    "AIPERF_SERVICE_HEARTBEAT_MISSED_THRESHOLD": "100",
}


@feature("a benchmark of streamed chats")
def benchmark():
    words = [word for pair in OPTIONS.items() for word in pair]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **LIMITS}
        run_command("aiperf", "profile", "--streaming", "--no-gpu-telemetry", *words, cwd=folder, env=environment)
        found = json.loads(next(Path(folder).rglob("profile_export_aiperf.json")).read_text())
    assert found["request_count"]["avg"] == REQUESTS and not found["error_summary"], found["error_summary"]


main()
