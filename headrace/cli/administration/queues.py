"""`headrace queues`: list the queues; pause, resume and drain those of a model or of one tenant in it."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from headrace.cli.options import AdminUrl, ApiKey, Json, client_at, plain_table, print_json
from headrace.terminal import Terminal, print_text

app = typer.Typer(no_args_is_help=True, help="Queues: list, pause, resume, drain them.")

QueueModel = Annotated[str, typer.Argument(help="Name of a served model.")]
QueueTenant = Annotated[str | None, typer.Option("--tenant", help="Only this tenant's share of the queue.")]


@app.command("list")
def list_queues(url: AdminUrl, api_key: ApiKey = None, as_json: Json = False) -> None:
    """List the queues with their tenants, and what each gets of what it should get."""
    with client_at(url, api_key) as client:
        found = client.administer("GET", "/admin/queues")
    if as_json:
        print_json(found)
        return
    table = plain_table("model", "tenant", "state", "waiting", "held", "oldest", "share", "of")
    for queue in found["data"]:
        table.add_row(*(escape(text) for text in _cells(queue["model"], "", queue)), "", "")
        for tenant in queue["tenants"]:
            shares = (percent(tenant["share"]), percent(tenant["weight_share"]))
            table.add_row(*(escape(text) for text in _cells("", tenant["tenant"], tenant)), *shares)
    Terminal().print(table)


def _cells(model: str, tenant: str, row: dict[str, Any]) -> tuple[str, ...]:
    held = "" if row["held"] is None else str(row["held"])
    return (model, tenant, row["state"], str(row["waiting"]), held, seconds(row["oldest_age"]))


@app.command()
def pause(
    model: QueueModel, url: AdminUrl, tenant: QueueTenant = None, api_key: ApiKey = None, as_json: Json = False
) -> None:
    """Let workers take no requests; new ones are accepted, and wait."""
    _change("pause", model, tenant, url, api_key, as_json)


@app.command()
def resume(
    model: QueueModel, url: AdminUrl, tenant: QueueTenant = None, api_key: ApiKey = None, as_json: Json = False
) -> None:
    """End a pause or a drain."""
    _change("resume", model, tenant, url, api_key, as_json)


@app.command()
def drain(
    model: QueueModel, url: AdminUrl, tenant: QueueTenant = None, api_key: ApiKey = None, as_json: Json = False
) -> None:
    """Refuse new requests, and serve those that wait."""
    _change("drain", model, tenant, url, api_key, as_json)


def _change(action: str, model: str, tenant: str | None, url: str, api_key: str | None, as_json: bool) -> None:
    from headrace.client.operations import segment

    of = "" if tenant is None else f"/tenants/{segment(tenant)}"
    with client_at(url, api_key) as client:
        found = client.administer("POST", f"/admin/queues/{segment(model)}{of}/{action}")
    if as_json:
        print_json(found)
        return
    print_text(f"{found['model']}{'' if tenant is None else f', tenant {tenant}'}: {found['state']}")


def percent(share: float | None) -> str:
    """Return a share, or a dash if it is unknown."""
    return "-" if share is None else f"{share:.0%}"


def seconds(age: float) -> str:
    """Return an age in short: 0.4 s, 12 s, 3 m, 2 h."""
    if age < 10:
        return f"{age:.1f} s" if age else "-"
    if age < 120:
        return f"{age:.0f} s"
    return f"{age / 60:.0f} m" if age < 7200 else f"{age / 3600:.0f} h"
