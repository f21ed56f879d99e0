"""Entry point of the command line. To add a command, write it in a module of this package and register it here."""

from __future__ import annotations

import sys

import typer
from rich.markup import escape

from headrace import __version__
from headrace.cli import (
    batch,
    bench,
    chat,
    config,
    doctor,
    jobs,
    kafka,
    models,
    processes,
    sim,
    verify,
    watermark,
    why,
)
from headrace.cli.administration import api_keys, dead_letters, queues, top, usage, workers
from headrace.cli.options import Json, print_json, stderr
from shared.errors import ConfigError, HeadraceError

app = typer.Typer(
    name="headrace",
    help="Queue-driven LLM inference: an accepted request is never lost.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def version(as_json: Json = False) -> None:
    """Print the version."""
    if as_json:
        print_json({"version": __version__})
    else:
        print(__version__)


START, USE, OPERATE, MEASURE = "Start processes", "Use a running API", "Operate", "Measure"

app.command(rich_help_panel=START)(processes.up)
app.command(rich_help_panel=START)(processes.api)
app.add_typer(workers.app, name="worker", rich_help_panel=START)
app.command(rich_help_panel=START)(processes.tasks)
app.command(rich_help_panel=USE)(chat.chat)
app.command(rich_help_panel=USE)(jobs.submit)
app.command(rich_help_panel=USE)(jobs.tail)
app.command(rich_help_panel=USE)(jobs.cancel)
app.command(rich_help_panel=USE)(why.why)
app.command(rich_help_panel=USE)(verify.verify)
app.add_typer(models.app, name="models", rich_help_panel=USE)
app.add_typer(batch.app, name="batch", rich_help_panel=USE)
app.add_typer(kafka.app, name="kafka", rich_help_panel=USE)
app.command(rich_help_panel=OPERATE)(doctor.doctor)
app.command(rich_help_panel=OPERATE)(top.top)
app.add_typer(queues.app, name="queues", rich_help_panel=OPERATE)
app.add_typer(config.app, name="config", rich_help_panel=OPERATE)
app.add_typer(api_keys.app, name="keys", rich_help_panel=OPERATE)
app.command(rich_help_panel=OPERATE)(usage.usage)
app.add_typer(dead_letters.app, name="dead-letters", rich_help_panel=OPERATE)
app.add_typer(watermark.app, name="watermark", rich_help_panel=OPERATE)
app.command(rich_help_panel=OPERATE)(version)
app.add_typer(bench.app, name="bench", rich_help_panel=MEASURE)
app.add_typer(sim.app, name="sim", rich_help_panel=MEASURE)


def main() -> None:
    """Run a command. A HeadraceError is printed in one line; the exit code is 1, or 2 for a wrong setting."""
    try:
        app()
    except HeadraceError as error:
        from shared.runtime.logging import settle_logs

        settle_logs()  # the launcher reports a child's last line
        stderr.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True, highlight=False)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
