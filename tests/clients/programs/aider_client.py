"""aider: one message about a file, without a repository."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from features import KEY, MODEL, URL, feature, main


@feature("one message about a file")
def message():
    environment = {**os.environ, "OPENAI_API_BASE": f"{URL}/v1", "OPENAI_API_KEY": KEY}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "hello.py").write_text("print('hi')\n")
        command = [str(Path(sys.executable).parent / "aider"), "--model", f"openai/{MODEL}"]
        options = [
            "--no-git",
            "--yes-always",
            "--no-check-update",
            "--no-show-model-warnings",
            "--analytics-disable",
        ]
        talk = ["--message", "Say what it prints", "--chat-mode", "ask", "--map-tokens", "0", "hello.py"]
        done = subprocess.run(
            [*command, *options, *talk],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0 and "Error" not in done.stdout, done.stdout[-300:]
    return "the quality of its answers is up to a model of 135M parameters"


main()
