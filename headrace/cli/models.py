"""`headrace models`: the models that are served, their versions, and where requests for them go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from headrace.cli import model_traffic
from headrace.cli.options import (
    DEFAULT_URL,
    AdminUrl,
    ApiKey,
    Config,
    Json,
    Url,
    client_at,
    plain_table,
    print_json,
)
from headrace.terminal import Terminal, print_text
from shared.errors import ConfigError

if TYPE_CHECKING:
    from shared.settings import Settings

app = typer.Typer(invoke_without_command=True, help="Models: list, load, add, compare them; split traffic.")

Name = Annotated[str, typer.Argument(help="Name of a served model.")]
LOAD_RETRY_S = 900.0  # for which a command waits until a model is loaded
MIB = 2**20


@app.callback()
def list_names(
    context: typer.Context, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False
) -> None:
    """List the names of the models that are served; commands show and change the models."""
    if context.invoked_subcommand is not None:
        return
    with client_at(url, api_key) as client:
        found = client.models()
    if as_json:
        print_json(found)
        return
    for model in found:
        print_text(model["id"])


@app.command("list")
def list_models(url: AdminUrl, api_key: ApiKey = None, as_json: Json = False) -> None:
    """List the models with their versions, states, memory and requests."""
    with client_at(url, api_key) as client:
        found = client.administer("GET", "/admin/models")["data"]
    if as_json:
        print_json(found)
        return
    table = plain_table("model", "version", "state", "memory", "requests", "failed", "waiting", "reason")
    for model in found:
        for version in model["versions"] or [None]:
            table.add_row(*(escape(text) for text in _row(model, version)))
    Terminal().print(table)


def _row(model: dict[str, Any], version: dict[str, Any] | None) -> tuple[str, ...]:
    if version is None:
        return (model["name"], "", "UNAVAILABLE", "", "", "", "", model["reason"])
    loading = f" {version['progress']:.0%}" if version["state"] == "LOADING" else ""
    memory = f"{version['memory_bytes'] / MIB:.0f} MiB" if version["memory_bytes"] else ""
    counts = (str(version[name]) for name in ("requests", "failed", "pending"))
    return (model["name"], version["version"], version["state"] + loading, memory, *counts, version["reason"])


@app.command()
def load(model: Name, url: AdminUrl, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Load a model of the repository, or load it again after a change of its files, and wait for it."""
    _order(model, "load", {}, url, api_key, as_json)


@app.command()
def unload(
    model: Name,
    url: AdminUrl,
    dependents: Annotated[bool, typer.Option(help="Unload the models of an ensemble, too.")] = False,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Unload a model of the repository; its requests are refused until it is loaded again."""
    _order(model, "unload", {"unload_dependents": dependents}, url, api_key, as_json)


def _order(
    model: str, action: str, parameters: dict[str, Any], url: str, api_key: str | None, as_json: bool
) -> None:
    from headrace.client.operations import segment

    with client_at(url, api_key, LOAD_RETRY_S) as client:
        client.administer("POST", f"/v2/repository/models/{segment(model)}/{action}", {"parameters": parameters})
    if as_json:
        print_json({"model": model, "action": action})
    else:
        print(f"{model} is {action}ed")


@app.command()
def add(
    source: Annotated[Path, typer.Argument(help="A model's file, or its folder.")],
    name: Annotated[str, typer.Argument(help="Name of the model in the repository.")],
    repository: Annotated[Path | None, typer.Option(help="The repository; default: model_repository.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Copy a model into the repository as its next version. Workers see it complete, or not at all."""
    from workers.repository.addition import add_version

    root = repository or _settings(config).model_repository
    if root is None:
        raise ConfigError("repository must be given, or model_repository set", param="repository")
    version, found = add_version(root, name, source)
    if as_json:
        print_json({"model": name, "version": str(version), "backend": found.spec.backend})
    else:
        print(f"added {name}, version {version}, for backend {found.spec.backend}")


def _settings(config: Path | None) -> Settings:
    from shared.settings import load as load_settings

    return load_settings({}, file=config).settings


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
        print_text(f"{state['model']} {'falls asleep' if state['asleep'] else 'wakes up'}")


for command in (model_traffic.alias, model_traffic.split, model_traffic.shadow, model_traffic.compare):
    app.command()(command)
