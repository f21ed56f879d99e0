"""`headrace usage`: sums of the usage records in the accounts database."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.markup import escape

from headrace.cli.options import AccountsDir, Config, Json, comma_separated, plain_table, print_json
from headrace.terminal import Terminal
from shared.errors import ConfigError

Day = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First day (UTC).")]


def usage(
    config: Config = None,
    data_dir: AccountsDir = None,
    by: Annotated[
        str, typer.Option(help="Fields to group by: tenant, key, user, model, day, state.")
    ] = "key,model,day",
    tenant: Annotated[str, typer.Option(help="Only this tenant.")] = "",
    key: Annotated[str, typer.Option(help="Only this key, by its id.")] = "",
    user: Annotated[str, typer.Option(help="Only this user.")] = "",
    model: Annotated[str, typer.Option(help="Only this model.")] = "",
    since: Day = None,
    until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Day after the last one (UTC).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Sum requests and tokens by key, model and day of admission."""
    try:
        from shared.accounts.database import Database
        from shared.accounts.usage import GROUPS, Filters, UsageRecords
    except ImportError as error:
        raise ConfigError(f"{error}: install headrace[api]") from error
    from shared.settings import load

    groups = comma_separated(by)
    if wrong := sorted(set(groups) - set(GROUPS)):
        raise ConfigError(f"--by must be a list of {', '.join(GROUPS)}, got {wrong[0]}")
    settings = load({"data_dir": data_dir}, file=config).settings
    filters = Filters(tenant, key, user, model, since and since.date(), until and until.date())

    async def sums() -> list[dict[str, Any]]:
        async with Database.from_settings(settings) as database:
            return await UsageRecords(database).sums(groups, filters)

    found = asyncio.run(sums())
    if as_json:
        print_json(found)
        return
    table = plain_table(*groups)
    for name in ("requests", "prompt_tokens", "completion_tokens"):
        table.add_column(name.replace("_", " "), justify="right")
    for row in found:
        table.add_row(*(escape(str(value)) if value != "" else "-" for value in row.values()))
    Terminal().print(table)
