"""`headrace keys`: API keys, made, listed, revoked and rotated in the accounts' database."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from headrace.cli.options import AccountsDir, Config, Json
from shared.errors import ConfigError

if TYPE_CHECKING:
    from shared.accounts.api_keys import ApiKey, ApiKeys

app = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke, rotate.")

SPAN = re.compile(r"([1-9][0-9]{0,5})([smhd])")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
SCOPES = ("models", "routes", "classes")

Result = TypeVar("Result")
KeyId = Annotated[str, typer.Argument(metavar="KEY", help="The key's id, as hr_0123456789ab.")]

err = Console(stderr=True)


@app.command()
def create(
    config: Config = None,
    data_dir: AccountsDir = None,
    tenant: Annotated[str, typer.Option(help="Whose it is: no other tenant sees what it makes.")] = "default",
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    plan: Annotated[str, typer.Option(help="The plan whose limits it has.")] = "",
    expires: Annotated[str | None, typer.Option(help="It ends after as long: 12h, 90d.")] = None,
    models: Annotated[str | None, typer.Option(help="Only these models, by commas.")] = None,
    routes: Annotated[str | None, typer.Option(help="Only these groups of routes, by commas.")] = None,
    classes: Annotated[str | None, typer.Option(help="Only these classes: interactive,standard,batch.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="It may administer.")] = False,
    as_json: Json = False,
) -> None:
    """Make a key and print it: this once, since only its digest is kept."""
    from shared.accounts.scopes import Scopes, checked_tenant

    scopes = Scopes.of(admin=admin, models=_names(models), routes=_names(routes), classes=_names(classes))
    ends = None if expires is None else time.time() + _seconds(expires)
    checked_tenant(tenant)
    made = _run(
        config,
        data_dir,
        lambda keys: keys.create(tenant=tenant, scopes=scopes, label=label, plan=plan, expires_at=ends),
    )
    _tell_new(*made, as_json)


@app.command("list")
def list_keys(
    prefix: Annotated[str | None, typer.Argument(help="Only those whose id begins so.")] = None,
    config: Config = None,
    data_dir: AccountsDir = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    ended: Annotated[bool, typer.Option("--all", help="Also those that were revoked or have expired.")] = False,
    as_json: Json = False,
) -> None:
    """List keys, newest first."""
    from shared.accounts.api_keys import id_of

    begin = "" if prefix in (None, "hr_") else id_of(prefix)
    found = _run(config, data_dir, lambda keys: keys.list(prefix=begin, tenant=tenant, ended=ended))
    if as_json:
        print(json.dumps([_as_json(key) for key in found]))
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("key", "tenant", "label", "may use", "plan", "made", "ends"):
        table.add_column(name, no_wrap=name == "key", overflow="fold")
    for key in found:
        row = (key.tenant, key.label, _scopes(key), key.plan, _when(key.created_at), _end(key))
        table.add_row(f"hr_{key.id}", *map(escape, row))
    Console().print(table)


@app.command()
def revoke(key: KeyId, config: Config = None, data_dir: AccountsDir = None, as_json: Json = False) -> None:
    """End a key: within `key_life` seconds no API process takes it any more."""
    from shared.accounts.api_keys import id_of

    found = _run(config, data_dir, lambda keys: keys.revoke(id_of(key)))
    print(json.dumps(_as_json(found)) if as_json else f"hr_{found.id} is revoked")


@app.command()
def rotate(
    key: KeyId,
    config: Config = None,
    data_dir: AccountsDir = None,
    overlap: Annotated[str, typer.Option(help="The old one goes on for as long: 0s, 12h, 7d.")] = "24h",
    as_json: Json = False,
) -> None:
    """Make a key that may do the same, and end the old one after the overlap."""
    from shared.accounts.api_keys import id_of

    seconds = 0 if overlap == "0s" else _seconds(overlap)
    made = _run(config, data_dir, lambda keys: keys.rotate(id_of(key), overlap=seconds))
    _tell_new(*made, as_json)


def _run(config: Path | None, data_dir: Path | None, work: Callable[[ApiKeys], Awaitable[Result]]) -> Result:
    """What `work` does with the keys that the settings lead to."""
    from shared.settings import load

    try:
        from shared.accounts.api_keys import ApiKeys
        from shared.accounts.database import Database
    except ImportError as error:
        raise ConfigError(f"{error}: install headrace[api]") from error
    from shared.accounts.pepper import pepper_of

    settings = load({"data_dir": data_dir}, file=config).settings

    async def run() -> Result:
        async with Database.of(settings) as database:
            return await work(ApiKeys(database, pepper_of(settings)))

    return asyncio.run(run())


def _names(given: str | None) -> list[str] | None:
    return None if given is None else [name.strip() for name in given.split(",") if name.strip()]


def _seconds(span: str) -> int:
    found = SPAN.fullmatch(span)
    if found is None:
        raise ConfigError(f"{span!r} is no time: give a number and s, m, h or d, as 90d")
    return int(found[1]) * UNITS[found[2]]


def _tell_new(key: ApiKey, text: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"key": text, **_as_json(key)}))
        return
    print(text)
    if err.is_terminal:
        err.print("Keep it: it is shown this once.", style="yellow")


def _as_json(key: ApiKey) -> dict[str, Any]:
    """Without the digest."""
    scopes = {name: None if (names := getattr(key.scopes, name)) is None else sorted(names) for name in SCOPES}
    told = ("tenant", "label", "plan", "created_at", "expires_at", "revoked_at")
    replaced = key.replaced_by and f"hr_{key.replaced_by}"
    fields = {name: getattr(key, name) for name in told}
    return {"id": f"hr_{key.id}", **fields, "admin": key.scopes.admin, **scopes, "replaced_by": replaced}


def _scopes(key: ApiKey) -> str:
    found = ["admin"] if key.scopes.admin else []
    for name in SCOPES:
        names = getattr(key.scopes, name)
        if names is not None:
            found.append(f"{name}: {', '.join(sorted(names)) or 'none'}")
    return "; ".join(found) or "all but admin"


def _end(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {_when(key.revoked_at)}"
    return "never" if key.expires_at is None else _when(key.expires_at)


def _when(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(" ", "minutes")
