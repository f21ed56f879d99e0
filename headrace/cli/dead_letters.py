"""`headrace dead-letters`: requests that were set aside, to be looked at, run again or thrown away."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from headrace.cli.options import URL, ApiKey, Json, Url, client_at

app = typer.Typer(no_args_is_help=True, help="Requests that were set aside: list, show, replay, purge.")

LetterId = Annotated[str, typer.Argument(help="The request's id.")]


@app.command("list")
def list_letters(
    url: Url = URL,
    api_key: ApiKey = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most to list.")] = 100,
    after: Annotated[str | None, typer.Option(help="Only those older than this one.")] = None,
    as_json: Json = False,
) -> None:
    """List them, newest first."""
    with client_at(url, api_key) as client:
        letters = client.dead_letters(limit=limit, after=after)
    if as_json:
        print(json.dumps(letters))
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("id", "model", "lost", "set aside", "reason"):
        table.add_column(name, no_wrap=name == "id", overflow="fold")
    for letter in letters:
        at = datetime.fromtimestamp(letter["at"]).astimezone().isoformat(" ", "seconds")
        reason = escape(f"{letter['reason']['code']}: {letter['reason']['message']}")
        table.add_row(letter["id"], escape(letter["model"]), str(letter["attempts"]), at, reason)
    Console().print(table)


@app.command()
def show(letter_id: LetterId, url: Url = URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show one with its request as it was submitted."""
    with client_at(url, api_key) as client:
        letter = client.dead_letter(letter_id)
    print(json.dumps(letter, indent=None if as_json else 2, ensure_ascii=as_json))


@app.command()
def replay(letter_id: LetterId, url: Url = URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Queue one again as a new job, and print that job's id."""
    with client_at(url, api_key) as client:
        job = client.replay_dead_letter(letter_id)
    print(json.dumps(job) if as_json else job["id"])


@app.command()
def purge(
    letter_id: Annotated[str | None, typer.Argument(help="One of them; without it all.")] = None,
    url: Url = URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Throw one or all away."""
    with client_at(url, api_key) as client:
        if letter_id is None:
            removed = client.purge_dead_letters()
        else:
            client.remove_dead_letter(letter_id)
            removed = 1
    print(json.dumps({"removed": removed}) if as_json else f"{removed} removed")
