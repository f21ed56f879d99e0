"""`headrace config`: the settings in effect."""

from __future__ import annotations

import typer
from rich.markup import escape

from headrace.cli.options import Config, Json, plain_table, print_json
from headrace.terminal import Terminal

app = typer.Typer(no_args_is_help=True, help="Settings and their sources.")


@app.callback()
def _group() -> None:
    """Keep `show` a subcommand although it is the only one."""


@app.command()
def show(config: Config = None, as_json: Json = False) -> None:
    """Show the value of each setting, and whether a flag, the environment, a file or the default set it."""
    from shared.settings import load

    loaded = load({}, file=config)
    values = loaded.settings.model_dump(mode="json")
    if as_json:
        print_json({name: {"value": value, "from": loaded.origin[name]} for name, value in values.items()})
        return
    table = plain_table("setting", "value", "from", "description")
    fields = type(loaded.settings).model_fields
    for name, value in values.items():
        origin = loaded.origin[name]
        style = "dim" if origin == "default" else "bold"
        description = escape(fields[name].description or "")
        table.add_row(name, escape(str(value)), origin, description, style=style)
    Terminal().print(table)
