"""guidellm: a short benchmark of the chat route."""

import subprocess
import sys
from pathlib import Path

from features import KEY, MODEL, URL, feature, main


@feature("a benchmark of streamed chats")
def benchmark():
    command = [str(Path(sys.executable).parent / "guidellm"), "benchmark", "run"]
    options = {
        "--target": URL,
        "--model": MODEL,
        "--profile": "concurrent",
        "--rate": "2",
        "--max-requests": "4",
        "--data": "prompt_tokens=16,output_tokens=8",
        "--processor": __import__("os").environ["HEADRACE_MODEL_FOLDER"],
        "--backend-kwargs": f'{{"api_key": "{KEY}"}}',
        "--outputs": "json",
        "--output-path": "guidellm.json",
    }
    words = [word for pair in options.items() for word in pair]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-300:] or done.stdout[-300:]


main()
