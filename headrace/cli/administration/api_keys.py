"""`headrace keys`: create, list, revoke and rotate API keys in the accounts database."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.markup import escape

from headrace.cli.options import AccountsDir, Config, Json, comma_separated, plain_table, print_json, stderr
from headrace.terminal import Terminal
from shared.errors import ConfigError

if TYPE_CHECKING:
    from shared.accounts.api_keys import ApiKey, ApiKeys

app = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke, rotate.")

DURATION = re.compile(r"([1-9][0-9]{0,5})([smhd])")
SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
SCOPES = ("models", "routes", "classes")

Result = TypeVar("Result")
KeyId = Annotated[str, typer.Argument(metavar="KEY", help="Id of the key, such as hr_0123456789ab.")]


@app.command()
def create(
    config: Config = None,
    data_dir: AccountsDir = None,
    tenant: Annotated[
        str, typer.Option(help="Tenant of the key; tenants do not see each other's data.")
    ] = "default",
    label: Annotated[str, typer.Option(help="Description of the key.")] = "",
    plan: Annotated[str, typer.Option(help="Plan whose limits apply to the key.")] = "",
    expires: Annotated[str | None, typer.Option(help="Lifetime of the key, such as 12h or 90d.")] = None,
    models: Annotated[str | None, typer.Option(help="Allow only these models, separated by commas.")] = None,
    routes: Annotated[
        str | None, typer.Option(help="Allow only these groups of routes, separated by commas.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Allow only these classes: interactive,standard,batch.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="Allow administration.")] = False,
    as_json: Json = False,
) -> None:
    """Create a key and print it. It cannot be shown again, because only its digest is stored."""
    from shared.accounts.scopes import Scopes, checked_tenant

    scopes = Scopes.parse(
        admin=admin,
        models=_optional_names(models),
        routes=_optional_names(routes),
        classes=_optional_names(classes),
    )
    expires_at = None if expires is None else time.time() + _duration_seconds(expires)
    checked_tenant(tenant)
    new_key = _with_keys(
        config,
        data_dir,
        lambda keys: keys.create(tenant=tenant, scopes=scopes, label=label, plan=plan, expires_at=expires_at),
    )
    _print_new_key(*new_key, as_json)


@app.command("list")
def list_keys(
    prefix: Annotated[str | None, typer.Argument(help="List only keys whose id starts with this.")] = None,
    config: Config = None,
    data_dir: AccountsDir = None,
    tenant: Annotated[str | None, typer.Option(help="List only keys of this tenant.")] = None,
    include_ended: Annotated[bool, typer.Option("--all", help="Include revoked and expired keys.")] = False,
    as_json: Json = False,
) -> None:
    """List keys, newest first."""
    from shared.accounts.api_keys import id_of

    prefix_id = "" if prefix in (None, "hr_") else id_of(prefix)
    found = _with_keys(
        config, data_dir, lambda keys: keys.list(prefix=prefix_id, tenant=tenant, ended=include_ended)
    )
    if as_json:
        print_json([_as_json(key) for key in found])
        return
    table = plain_table()
    for name in ("key", "tenant", "label", "may use", "plan", "created", "expires"):
        table.add_column(name, no_wrap=name == "key", overflow="fold")
    for key in found:
        row = (key.tenant, key.label, _scopes_text(key), key.plan, _local_time(key.created_at), _expiry(key))
        table.add_row(f"hr_{key.id}", *map(escape, row))
    Terminal().print(table)


@app.command()
def revoke(key: KeyId, config: Config = None, data_dir: AccountsDir = None, as_json: Json = False) -> None:
    """Revoke a key. API processes refuse it after at most `key_life` seconds."""
    from shared.accounts.api_keys import id_of

    found = _with_keys(config, data_dir, lambda keys: keys.revoke(id_of(key)))
    if as_json:
        print_json(_as_json(found))
    else:
        print(f"hr_{found.id} is revoked")


@app.command()
def rotate(
    key: KeyId,
    config: Config = None,
    data_dir: AccountsDir = None,
    overlap: Annotated[
        str, typer.Option(help="For how long the old key stays valid, such as 0s, 12h or 7d.")
    ] = "24h",
    as_json: Json = False,
) -> None:
    """Create a key with the same permissions, and end the old one after the overlap."""
    from shared.accounts.api_keys import id_of

    seconds = 0 if overlap == "0s" else _duration_seconds(overlap)
    new_key = _with_keys(config, data_dir, lambda keys: keys.rotate(id_of(key), overlap=seconds))
    _print_new_key(*new_key, as_json)


def _with_keys(config: Path | None, data_dir: Path | None, work: Callable[[ApiKeys], Awaitable[Result]]) -> Result:
    """Run `work` with the keys in the database of the settings."""
    from shared.settings import load

    try:
        from shared.accounts.api_keys import ApiKeys
        from shared.accounts.database import Database
    except ImportError as error:
        raise ConfigError(f"{error}: install headrace[api]") from error
    from shared.accounts.pepper import pepper_of

    settings = load({"data_dir": data_dir}, file=config).settings

    async def run() -> Result:
        async with Database.from_settings(settings) as database:
            return await work(ApiKeys(database, pepper_of(settings)))

    return asyncio.run(run())


def _optional_names(given: str | None) -> list[str] | None:
    return None if given is None else comma_separated(given)


def _duration_seconds(duration: str) -> int:
    found = DURATION.fullmatch(duration)
    if found is None:
        raise ConfigError(f"a duration must be a number followed by s, m, h or d, such as 90d, got {duration!r}")
    return int(found[1]) * SECONDS_PER_UNIT[found[2]]


def _print_new_key(key: ApiKey, text: str, as_json: bool) -> None:
    if as_json:
        print_json({"key": text, **_as_json(key)})
        return
    print(text)
    if stderr.is_terminal:
        stderr.print("Store this key now; it is not shown again.", style="yellow")


def _as_json(key: ApiKey) -> dict[str, Any]:
    """Return the fields of a key, without its digest."""
    scopes = {name: None if (names := getattr(key.scopes, name)) is None else sorted(names) for name in SCOPES}
    shown = ("tenant", "label", "plan", "created_at", "expires_at", "revoked_at")
    replaced = key.replaced_by and f"hr_{key.replaced_by}"
    fields = {name: getattr(key, name) for name in shown}
    return {"id": f"hr_{key.id}", **fields, "admin": key.scopes.admin, **scopes, "replaced_by": replaced}


def _scopes_text(key: ApiKey) -> str:
    found = ["admin"] if key.scopes.admin else []
    for name in SCOPES:
        names = getattr(key.scopes, name)
        if names is not None:
            found.append(f"{name}: {', '.join(sorted(names)) or 'none'}")
    return "; ".join(found) or "all but admin"


def _expiry(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {_local_time(key.revoked_at)}"
    return "never" if key.expires_at is None else _local_time(key.expires_at)


def _local_time(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(" ", "minutes")
