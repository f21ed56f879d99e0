"""`headrace doctor`: check this machine, the settings and Redis."""

from __future__ import annotations

from rich.markup import escape
from typer import Exit

from headrace.cli.options import Config, Json, Model, RedisUrl, plain_table, print_json
from headrace.terminal import Terminal

MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failed": "[red]failed[/]"}


def doctor(config: Config = None, redis_url: RedisUrl = None, model: Model = None, as_json: Json = False) -> None:
    """Check what Headrace needs on this machine, and print how to fix what is missing."""
    from headrace.doctor.checks import examine
    from shared.settings import load

    findings = examine(load({"redis_url": redis_url, "model": model}, file=config))
    if as_json:
        print_json([finding.__dict__ for finding in findings])
    else:
        table = plain_table()
        for finding in findings:
            remedy = f"\n[dim]{escape(finding.remedy)}[/]" if finding.remedy else ""
            table.add_row(MARKS[finding.status], finding.what, escape(finding.found) + remedy)
        Terminal().print(table)
    if any(finding.status == "failed" for finding in findings):
        raise Exit(1)
