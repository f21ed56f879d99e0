"""NVIDIA's aiperf: a short benchmark of the chat route."""

import json
import os
import tempfile
from pathlib import Path

from features import KEY, MODEL, URL, feature, main, run_command

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
}


@feature("a benchmark of streamed chats")
def benchmark():
    words = [word for pair in OPTIONS.items() for word in pair]
    with tempfile.TemporaryDirectory() as folder:
        run_command("aiperf", "profile", "--streaming", *words, cwd=folder)
        found = json.loads(next(Path(folder).rglob("profile_export_aiperf.json")).read_text())
    assert found["request_count"]["avg"] == REQUESTS and not found["error_summary"], found["error_summary"]


main()
