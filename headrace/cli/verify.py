"""`headrace verify`: run a logged request again, and compare the answers token by token."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.options import DEFAULT_URL, STREAM_RETRY_S, ApiKey, Json, Url, client_at, print_json
from shared.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from headrace.client import HeadraceClient
    from headrace.client.verification import Difference, Place, Recording

MAX_FILE_BYTES = 2**26


def verify(
    job: Annotated[str, typer.Argument(help="Id of a completed job, or a file that --save wrote.")],
    save: Annotated[Path | None, typer.Option(help="File to save the job's recording in.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Run a logged request again on any worker, and report the same bits or the first token that differs.

    The exit status is 0 for the same bits, and 1 for a difference or an error.
    """
    from headrace.client.verification import compare

    with client_at(url, api_key, STREAM_RETRY_S) as client:
        logged = _read(Path(job)) if _is_file(job) else client.recording(job)
        if save is not None:
            _write(save, logged)
        again = client.run_recording(logged)["id"]
        verdict = compare(logged, _recorded(client, again))
    if as_json:
        print_json({"job_id": again, "same": verdict.same, **asdict(verdict)})
    elif verdict.difference is None:
        print(f"same bits: {verdict.tokens} tokens")
    else:
        _print_difference(verdict.difference)
    if not as_json:
        for reason in verdict.reasons:
            print(f"  {reason}")
        if not (verdict.same or verdict.reasons):
            print("  no reason found: the fingerprints are equal")
    if not verdict.same:
        raise typer.Exit(1)


def _recorded(client: HeadraceClient, job_id: str) -> Recording:
    """Wait for the new job, and return its recording. Raises the error that it ended with."""
    job = client.result(job_id)
    if job["state"] != "completed":
        error = job.get("error") or {}
        reason = error.get("message", f"it was {job['state']}")
        raise HeadraceError(f"the request failed when it was run again, as {job_id}: {reason}")
    return client.recording(job_id)


def _is_file(text: str) -> bool:
    return text.endswith(".json") or os.path.isfile(text)  # noqa: PTH113  Path's raises for a name that is too long


def _read(path: Path) -> Recording:
    """Return a saved recording. Raises ConfigError, InvalidRequest."""
    from headrace.client.verification import checked

    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", param="job") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} must have at most {MAX_FILE_BYTES} bytes", param="job")
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    return checked(value)


def _write(path: Path, recording: Recording) -> None:
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in recording.items()]
    try:
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", param="save") from error


def _print_difference(difference: Difference) -> None:
    print(f"choice {difference.choice} differs at token {difference.position}:")
    for name, place in (("logged", difference.logged), ("computed", difference.computed)):
        print(f"  {name + ':':10}{_described(place)}")


def _described(place: Place) -> str:
    if place.id is None:
        return f"the end ({place.text})" if place.text else "no such choice"
    return f"{place.id} {place.text!r}"
