"""Results of a client: one for each feature that its program tried."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime

from tests.clients.catalog import Client
from tests.clients.environments import InstallError, command_of, folder_of, install

# Guards against a hang. No client comes near them on a busy machine.
FEATURE_LIMIT_S = 1800
PROGRAM_LIMIT_S = 2 * FEATURE_LIMIT_S


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
    day: date
    results: tuple[Result, ...]

    def lines(self) -> Iterable[str]:
        for number, result in enumerate(self.results):
            day = self.day.isoformat().replace("-", "\N{NON-BREAKING HYPHEN}")
            cells = ("", "", "") if number else (self.client.name, self.client.version, day)
            yield f"| {' | '.join((*cells, result.feature, result.text.replace('|', '/')))} |"


def try_client(client: Client, server: dict[str, str]) -> Row:
    """Install the client and run its program against the server. Its errors go to stderr."""
    day = datetime.now(UTC).date()
    try:
        install(client)
    except InstallError as error:
        return Row(client, day, (Result("its installation", False, str(error)),))
    return Row(client, day, tuple(results_of(client, server)))


def results_of(client: Client, server: dict[str, str]) -> Iterator[Result]:
    """Run the client's program and yield what it reported, and how it failed to end."""
    environment = {**os.environ, **server, "HEADRACE_FEATURE_LIMIT_S": str(FEATURE_LIMIT_S)}
    with subprocess.Popen(
        command_of(client),
        env=environment,
        cwd=folder_of(client),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=PROGRAM_LIMIT_S)
            end = f"ended with status {process.returncode}"
        except subprocess.TimeoutExpired:
            end_group(process)
            output, _ = process.communicate()
            end = f"no end within {PROGRAM_LIMIT_S} s"
        finally:
            end_group(process)
    reports = [json.loads(line) for line in output.splitlines() if line.startswith('{"feature"')]
    yield from (Result(**report) for report in reports)
    if process.returncode or not reports:
        yield Result("its program", False, end)


def end_group(process: subprocess.Popen[str]) -> None:
    """Kill the program and the processes that it left, which would hold its output open and use the CPU."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
