"""The command group `headrace bench`, and what its commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from headrace.cli.options import print_json

app = typer.Typer(no_args_is_help=True, help="Benchmarks of the engine, the server and the queue.")

Seed = Annotated[int, typer.Option(help="Random seed of lengths, prompts and arrivals.")]
Repeats = Annotated[int, typer.Option(min=1, help="Number of runs or pairs of runs; medians are reported.")]
Model = Annotated[str, typer.Option(help="Folder, Hugging Face id, or smollm2.")]


def report(result: Any, as_json: bool) -> None:
    """Print the result of a benchmark, which has `as_dict` and `table`."""
    if as_json:
        print_json(result.as_dict())
    else:
        Console().print(result.table())
