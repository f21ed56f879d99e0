"""`headrace dead-letters`: list, show, replay or delete requests that were set aside."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated

import typer
from rich.markup import escape

from headrace.cli.options import DEFAULT_URL, ApiKey, Json, Url, client_at, plain_table, print_json
from headrace.terminal import Terminal, print_text

app = typer.Typer(no_args_is_help=True, help="Requests that were set aside: list, show, replay, purge.")

LetterId = Annotated[str, typer.Argument(help="Id of the request.")]


@app.command("list")
def list_letters(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number to list.")] = 100,
    after: Annotated[str | None, typer.Option(help="List only dead letters older than this one.")] = None,
    as_json: Json = False,
) -> None:
    """List dead letters, newest first."""
    with client_at(url, api_key) as client:
        letters = client.dead_letters(limit=limit, after=after)
    if as_json:
        print_json(letters)
        return
    table = plain_table()
    for name in ("id", "model", "attempts", "set aside", "reason"):
        table.add_column(name, no_wrap=name == "id", overflow="fold")
    for letter in letters:
        at = datetime.fromtimestamp(letter["at"]).astimezone().isoformat(" ", "seconds")
        reason = escape(f"{letter['reason']['code']}: {letter['reason']['message']}")
        table.add_row(escape(letter["id"]), escape(letter["model"]), str(letter["attempts"]), at, reason)
    Terminal().print(table)


@app.command()
def show(letter_id: LetterId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show a dead letter with its request as it was submitted."""
    with client_at(url, api_key) as client:
        letter = client.dead_letter(letter_id)
    print_text(json.dumps(letter, indent=None if as_json else 2, ensure_ascii=as_json))


@app.command()
def replay(letter_id: LetterId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Queue the request again as a new job, and print the id of the job."""
    with client_at(url, api_key) as client:
        job = client.replay_dead_letter(letter_id)
    if as_json:
        print_json(job)
    else:
        print_text(job["id"])


@app.command()
def purge(
    letter_id: Annotated[str | None, typer.Argument(help="Id of the request; default: all.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Delete one dead letter, or all."""
    with client_at(url, api_key) as client:
        if letter_id is None:
            removed = client.purge_dead_letters()
        else:
            client.remove_dead_letter(letter_id)
            removed = 1
    if as_json:
        print_json({"removed": removed})
    else:
        print_text(f"{removed} removed")
