"""`headrace submit`, `tail` and `cancel`: commands for the jobs of a running API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.options import (
    DEFAULT_URL,
    SHORT_RETRY_S,
    STREAM_RETRY_S,
    ApiKey,
    Json,
    Url,
    client_at,
    first_model,
    print_json,
    read_text,
    stderr,
)
from headrace.terminal import print_text
from shared.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.client import HeadraceClient

JobId = Annotated[str, typer.Argument(help="Id of the job or of its answer.")]


def submit(
    prompt: Annotated[str, typer.Argument(help="The user's message; - reads it from stdin.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    model: Annotated[str | None, typer.Option(help="A served model; default: the first.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Maximum number of tokens of the answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes a sampled answer repeatable.")] = None,
    priority: Annotated[str, typer.Option(help="interactive, standard or batch.")] = "standard",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stream the answer.")] = False,
    as_json: Json = False,
) -> None:
    """Submit a job, which runs without this command, and print its id."""
    text = read_text(Path("-"), "prompt") if prompt == "-" else prompt
    with client_at(url, api_key, STREAM_RETRY_S if follow else SHORT_RETRY_S) as client:
        body: dict[str, Any] = {
            "model": model or first_model(client),
            "messages": [{"role": "user", "content": text}],
            "priority": priority,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        job = client.submit({name: value for name, value in body.items() if value is not None})
        if follow:
            stderr.print(job["id"], style="dim", markup=False)
            _print_events(client, job["id"], -1, as_json)
        elif as_json:
            print_json(job)
        else:
            print_text(job["id"])


def tail(
    job_id: JobId,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    after: Annotated[int, typer.Option(help="Seq of the last token received.")] = -1,
    as_json: Json = False,
) -> None:
    """Stream the answer of a job from any token, across lost connections."""
    with client_at(url, api_key, STREAM_RETRY_S) as client:
        _print_events(client, job_id, after, as_json)


def _print_events(client: HeadraceClient, job_id: str, after: int, as_json: bool) -> None:
    for event in client.events(job_id, after):
        if as_json:
            print_json({"seq": event.seq, "event": event.name, **event.data})
        elif event.name == "token":
            print_text("".join(token["text"] for token in event.data["tokens"]), end="")
        else:
            print()
            if event.name != "done":
                error = event.data.get("error") or {}
                raise HeadraceError(f"the job ended with {event.name}: {error.get('message', 'it was cancelled')}")


def cancel(job_id: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Cancel a job."""
    with client_at(url, api_key) as client:
        job = client.cancel(job_id)
    if as_json:
        print_json(job)
    else:
        print_text(f"{job['id']} {job['state']}")
