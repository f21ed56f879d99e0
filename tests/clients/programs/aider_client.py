"""aider: one message about a file, without a repository."""

import os
import tempfile
from pathlib import Path

from features import KEY, MODEL, URL, feature, main, run_command

OPTIONS = (
    *("--model", f"openai/{MODEL}", "--chat-mode", "ask", "--map-tokens", "0"),
    *("--no-git", "--yes-always", "--no-check-update", "--no-show-model-warnings", "--analytics-disable"),
)


@feature("one message about a file")
def message():
    environment = {**os.environ, "OPENAI_API_BASE": f"{URL}/v1", "OPENAI_API_KEY": KEY}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "hello.py").write_text("print('hi')\n")
        said = run_command(
            "aider", *OPTIONS, "--message", "Say what it prints", "hello.py", cwd=folder, env=environment
        )
    assert "Tokens: " in said and "received" in said, "no answer"  # aider ends with 0 after an error too
    return "the quality of its answers is up to a model of 135M parameters"


main()
