"""NVIDIA's aiperf: a short benchmark of the chat route."""

import os
import subprocess
import sys
from pathlib import Path

from features import KEY, MODEL, URL, feature, main


@feature("a benchmark of streamed chats")
def benchmark():
    options = {
        "--model": MODEL,
        "--url": URL,
        "--endpoint-type": "chat",
        "--tokenizer": os.environ["HEADRACE_MODEL_FOLDER"],
        "--concurrency": "2",
        "--request-count": "4",
        "--synthetic-input-tokens-mean": "16",
        "--output-tokens-mean": "8",
        "--api-key": KEY,
        "--ui-type": "none",
    }
    words = [word for pair in options.items() for word in pair]
    command = [str(Path(sys.executable).parent / "aiperf"), "profile", "--streaming", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, (done.stderr or done.stdout)[-300:]


main()
