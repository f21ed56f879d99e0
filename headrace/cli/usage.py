"""`headrace usage`: sums of the usage records, out of the accounts' database."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from headrace.cli.options import AccountsDir, Config, Json
from shared.errors import ConfigError

Day = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="A day of UTC.")]


def usage(
    config: Config = None,
    data_dir: AccountsDir = None,
    by: Annotated[
        str, typer.Option(help="By what to sum: tenant, key, user, model, day, state.")
    ] = "key,model,day",
    tenant: Annotated[str, typer.Option(help="Only this tenant's.")] = "",
    key: Annotated[str, typer.Option(help="Only this key's, by its id.")] = "",
    user: Annotated[str, typer.Option(help="Only this user's.")] = "",
    model: Annotated[str, typer.Option(help="Only this model's.")] = "",
    since: Day = None,
    until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The day of UTC after the last.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Sum up requests and tokens, by key, model and day of admission."""
    try:
        from shared.accounts.database import Database
        from shared.accounts.usage import GROUPS, Filters, UsageRecords
    except ImportError as error:
        raise ConfigError(f"{error}: install headrace[api]") from error
    from shared.settings import load

    groups = [name.strip() for name in by.split(",") if name.strip()]
    if wrong := sorted(set(groups) - set(GROUPS)):
        raise ConfigError(f"--by {wrong[0]}: there are {', '.join(GROUPS)}")
    settings = load({"data_dir": data_dir}, file=config).settings
    filters = Filters(tenant, key, user, model, since and since.date(), until and until.date())

    async def sums() -> list[dict[str, Any]]:
        async with Database.of(settings) as database:
            return await UsageRecords(database).sums(groups, filters)

    found = asyncio.run(sums())
    if as_json:
        print(json.dumps(found))
        return
    table = Table(*groups, box=None, padding=(0, 2, 0, 0))
    for name in ("requests", "prompt_tokens", "completion_tokens"):
        table.add_column(name.replace("_", " "), justify="right")
    for row in found:
        table.add_row(*(escape(str(value)) if value != "" else "-" for value in row.values()))
    Console().print(table)
