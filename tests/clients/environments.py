"""An environment for each client, in the user's cache folder, kept until its packages change."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from pathlib import Path

from tests.clients.catalog import PROGRAMS, Client

INSTALL_LIMIT_S = 3600
MAX_REASON_CHARS = 200


class InstallError(Exception):
    """A client's packages cannot be installed here; the text says why."""


def folder_of(client: Client) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "headrace" / "clients" / Path(client.program).stem


def install(client: Client) -> None:
    """Install the client's packages unless they are there. Raise InstallError."""
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
            "--loglevel=error",
            "--no-fund",
            "--no-audit",
            "--prefix",
            str(folder),
            *client.packages,
        ]
    try:
        subprocess.run(command, check=True, timeout=INSTALL_LIMIT_S, capture_output=True, text=True)
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"not installed within {INSTALL_LIMIT_S} s") from error
    except subprocess.CalledProcessError as error:
        raise InstallError(reason_of(error)) from error
    ready.write_text(wanted)


def reason_of(error: subprocess.CalledProcessError) -> str:
    """Return the first line in which pip or npm names an error."""
    lines = (line for line in error.stderr.splitlines() if "error" in line.lower())
    return next(lines, f"ended with status {error.returncode}")[:MAX_REASON_CHARS]


def command_of(client: Client) -> list[str]:
    """Return the command that runs the client's program."""
    folder = folder_of(client)
    if client.runtime == "python":
        return [str(folder / "bin/python"), str(PROGRAMS / client.program)]
    for name in ("features.mjs", client.program):  # Node finds packages beside the program
        (folder / name).write_text((PROGRAMS / name).read_text())
    return ["node", str(folder / client.program)]
