"""The command group `headrace bench`, and what its commands share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from headrace.cli.options import comma_separated, print_json
from headrace.terminal import Terminal
from shared.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Benchmarks of the engine, the server and the queue.")

Seed = Annotated[int, typer.Option(help="Random seed of lengths, prompts and arrivals.")]
Repeats = Annotated[int, typer.Option(min=1, help="Number of runs or pairs of runs; medians are reported.")]
Plot = Annotated[Path | None, typer.Option(help="File for the comparison of policies, as SVG.")]
Model = Annotated[str, typer.Option(help="Folder, GGUF file, Hugging Face id, or smollm2.")]


def report(result: Any, as_json: bool) -> None:
    """Print the result of a benchmark, which has `as_dict` and `table`."""
    if as_json:
        print_json(result.as_dict())
    else:
        Terminal().print(result.table())


def report_tables(result: Any, tables: Callable[[Any], Iterable[Table]], as_json: bool) -> None:
    """Print the result of a benchmark, which has `as_dict` and several tables."""
    if as_json:
        print_json(result.as_dict())
    else:
        for table in tables(result):
            Terminal().print(table)


def names_of(option: str, given: str, known: Collection[str]) -> list[str]:
    """Return the comma-separated names of an option. Raises ConfigError for none, and for one that is not known."""
    wanted = comma_separated(given)
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise ConfigError(f"{option} must be a list of {', '.join(known)}, got {(unknown or ['nothing'])[0]}")
    return wanted
