"""`headrace verify`: run a logged request again, and compare the answers token by token."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.options import DEFAULT_URL, STREAM_RETRY_S, ApiKey, Json, Url, client_at, print_json
from headrace.terminal import print_text
from shared.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from headrace.client import HeadraceClient
    from headrace.client.verification import Difference, Place, Recording

MAX_FILE_BYTES = 2**26


def verify(
    job: Annotated[str, typer.Argument(help="Id of a job or its answer, or a file that --save wrote.")],
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
        logged = _read(Path(job)) if _is_file(job) else _recording_of(client, job)
        if save is not None:
            _write(save, logged)
        again = _text(client.run_recording(logged), "id")
        verdict = compare(logged, _recorded(client, again))
    if as_json:
        print_json({"job_id": again, "same": verdict.same, **asdict(verdict)})
    elif verdict.difference is None:
        print_text(f"same bits: {verdict.tokens} tokens")
    else:
        _print_difference(verdict.difference)
    if not as_json:
        for reason in verdict.reasons:
            print_text(f"  {reason}")
        if not (verdict.same or verdict.reasons):
            print("  no reason found: the fingerprints are equal")
    if not verdict.same:
        raise typer.Exit(1)


def _recorded(client: HeadraceClient, job_id: str) -> Recording:
    """Wait for the new job, and return its recording. Raises the error that it ended with."""
    job = client.result(job_id)
    if (state := _text(job, "state")) != "completed":
        error = job.get("error")
        reason = _text(error, "message") if isinstance(error, dict) else f"it was {state}"
        raise HeadraceError(f"the request failed when it was run again, as {job_id}: {reason}")
    return _recording_of(client, job_id)


def _recording_of(client: HeadraceClient, job_id: str) -> Recording:
    """Return the recording of a job. Raises InvalidRequest if the answer is not one."""
    from headrace.client.verification import checked

    return checked(client.recording(job_id), "the answer of the server")


def _text(answer: dict[str, Any], name: str) -> str:
    """Return a field of an answer of the server. Raises HeadraceError if it is not a text."""
    value = answer.get(name)
    if not isinstance(value, str):
        raise HeadraceError(f"the answer of the server has no {name}; check that url points to Headrace")
    return value


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
    return checked(value, str(path))


def _write(path: Path, recording: Recording) -> None:
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in recording.items()]
    try:
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", param="save") from error


def _print_difference(difference: Difference) -> None:
    print_text(f"choice {difference.choice} differs at token {difference.position}:")
    for name, place in (("logged", difference.logged), ("computed", difference.computed)):
        print_text(f"  {name + ':':10}{_described(place)}")


def _described(place: Place) -> str:
    if place.id is None:
        return f"the end ({place.text})" if place.text else "no such choice"
    return f"{place.id} {place.text!r}"
