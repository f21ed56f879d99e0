"""Results of the clients, and the page that shows them: docs/clients.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.clients.catalog import Client
from tests.clients.environments import command_of, folder_of, install

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
    results: tuple[Result, ...]

    def lines(self) -> Iterable[str]:
        for number, result in enumerate(self.results):
            name, version = ("", "") if number else (self.client.name, self.client.version)
            yield f"| {name} | {version} | {result.feature} | {result.text.replace('|', '/')} |"


def try_client(client: Client, server: dict[str, str]) -> Row:
    """Install the client and run its program against the server. Its errors go to stderr."""
    try:
        install(client)
    except subprocess.SubprocessError as error:
        print(error, file=sys.stderr)
        return Row(client, (Result("its installation", False, "its packages cannot be installed here"),))
    return Row(client, tuple(results_of(client, server)))


def results_of(client: Client, server: dict[str, str]) -> Iterator[Result]:
    """Run the client's program and yield what it reported, and how it failed to end."""
    command, environment = command_of(client), {**os.environ, **server}
    with subprocess.Popen(
        command, env=environment, cwd=folder_of(client), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=RUN_LIMIT_S)
            end = f"ended with status {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            end = f"no end within {RUN_LIMIT_S} s"
    reports = [json.loads(line) for line in output.splitlines() if line.startswith('{"feature"')]
    yield from (Result(**report) for report in reports)
    if process.returncode or not reports:
        yield Result("its program", False, end)


def write(rows: Iterable[Row]) -> None:
    PAGE.write_text(HEAD + "".join(f"{line}\n" for row in rows for line in row.lines()), encoding="utf-8")
