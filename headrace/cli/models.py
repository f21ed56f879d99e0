"""`headrace models`: list the models that are served, put one to sleep, or wake it."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.options import DEFAULT_URL, ApiKey, Json, Url, client_at, print_json

app = typer.Typer(invoke_without_command=True, help="Models: list them, put one to sleep, wake it.")

Name = Annotated[str, typer.Argument(help="Name of a served model.")]
AdminUrl = Annotated[str, typer.Option("--url", help="Address of the admin port; see admin_port.")]


@app.callback()
def list_models(
    context: typer.Context, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False
) -> None:
    """List the models that are served, put one to sleep, or wake it."""
    if context.invoked_subcommand is not None:
        return
    with client_at(url, api_key) as client:
        found = client.models()
    if as_json:
        print_json(found)
        return
    for model in found:
        print(model["id"])


@app.command()
def sleep(model: Name, url: AdminUrl, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Release the weights of a model; its requests wait in the queue."""
    _set_asleep(model, url, api_key, as_json, asleep=True)


@app.command()
def wake(model: Name, url: AdminUrl, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Load a sleeping model again, which then serves the requests that wait."""
    _set_asleep(model, url, api_key, as_json, asleep=False)


def _set_asleep(model: str, url: str, api_key: str | None, as_json: bool, *, asleep: bool) -> None:
    with client_at(url, api_key) as client:
        state = client.set_asleep(model, asleep=asleep)
    if as_json:
        print_json(state)
    else:
        print(f"{state['model']} {'falls asleep' if state['asleep'] else 'wakes up'}")
