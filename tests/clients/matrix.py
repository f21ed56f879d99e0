"""Results of the clients, and the page that shows them: docs/clients.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.clients.catalog import Client
from tests.clients.environments import command_of, folder_of, version_of

PAGE = Path("docs/clients.md")
RUN_LIMIT_S = 600
HEAD = """# Clients

Programs that use these clients unmodified, against `headrace up` with SmolLM2-135M and all-MiniLM-L6-v2 on a CPU.
`scripts/test-clients` runs them, each in an environment of its own, and writes this page. With names of clients, it
runs those alone and prints their results.

| client | version | feature | result |
| --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Result:
    """Result of one feature; `remark` says why it does not work, or what it is limited to."""

    feature: str
    works: bool
    remark: str = ""

    @property
    def text(self) -> str:
        word = "works" if self.works else "**fails**"
        return f"{word}: {self.remark}" if self.remark else word


@dataclass(frozen=True)
class Row:
    client: Client
    version: str
    results: tuple[Result, ...]

    def lines(self) -> Iterable[str]:
        for number, result in enumerate(self.results):
            name, version = ("", "") if number else (self.client.name, self.version)
            yield f"| {name} | {version} | {result.feature} | {result.text.replace('|', '/')} |"


def try_client(client: Client, server: dict[str, str]) -> Row:
    """Run the client's program against the server and return what it reported; its errors go to stderr."""
    process = subprocess.run(
        command_of(client),
        env={**os.environ, **server},
        cwd=folder_of(client),
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
        text=True,
        timeout=RUN_LIMIT_S,
        check=False,
    )
    reports = [json.loads(line) for line in process.stdout.splitlines() if line.startswith('{"feature"')]
    results = [Result(**report) for report in reports]
    if process.returncode or not results:
        results.append(Result("its program", False, f"ended with status {process.returncode}"))
    return Row(client, version_of(client), tuple(results))


def write(rows: Iterable[Row]) -> None:
    PAGE.write_text(HEAD + "".join(f"{line}\n" for row in rows for line in row.lines()), encoding="utf-8")
