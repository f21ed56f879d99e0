"""An environment for each client, in the user's cache folder, kept until its packages change."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from pathlib import Path

from tests.clients.catalog import PROGRAMS, Client

INSTALL_LIMIT_S = 1200


def folder_of(client: Client) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "headrace" / "clients" / Path(client.program).stem


def install(client: Client) -> None:
    """Install the client's packages unless they are there. Raise CalledProcessError."""
    folder = folder_of(client)
    ready = folder / "ready"
    wanted = json.dumps(client.packages)
    if ready.exists() and ready.read_text() == wanted:
        return
    ready.unlink(missing_ok=True)
    if client.runtime == "python":
        venv.create(folder, with_pip=True, clear=True)
        command = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *client.packages]
    else:
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            "npm",
            "install",
            "--silent",
            "--no-fund",
            "--no-audit",
            "--prefix",
            str(folder),
            *client.packages,
        ]
    subprocess.run(command, check=True, timeout=INSTALL_LIMIT_S, capture_output=True)
    ready.write_text(wanted)


def command_of(client: Client) -> list[str]:
    """Return the command that runs the client's program."""
    folder = folder_of(client)
    if client.runtime == "python":
        return [str(folder / "bin/python"), str(PROGRAMS / client.program)]
    for name in ("features.mjs", client.program):  # Node finds packages beside the program
        (folder / name).write_text((PROGRAMS / name).read_text())
    return ["node", str(folder / client.program)]
