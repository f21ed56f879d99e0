"""`headrace batch`: runs a file of requests, through Ctrl-C and crashes."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from headrace.cli.kafka import Config, settings_for
from headrace.cli.options import URL, ApiKey, Json, Url, client_at, first_model
from shared.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from headrace.batch.input_file import Defaults, InputFile
    from headrace.batch.journal import Journal
    from headrace.batch.progress import RunCounts
    from headrace.batch.runner import LineRunner
    from shared.settings import Settings

    OpenLineRunner = AbstractAsyncContextManager[LineRunner]

app = typer.Typer(no_args_is_help=True, help="Files of requests, run through Ctrl-C and crashes.")

At = tuple[str, str | None]  # the API's address, and the key that it asks for
INTERRUPTED = 130  # the exit status that a shell gives to Ctrl-C

err = Console(stderr=True)


@app.callback()
def _group() -> None:
    """Makes `run` a command of its own, as the only one."""


@app.command()
def run(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="OpenAI batch lines, or bodies, or strings.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the results go; one there is gone on with.")],
    url: Url = URL,
    api_key: ApiKey = None,
    kafka: Annotated[
        str | None, typer.Option(metavar="BOOTSTRAP", help="Run it over Kafka's topics: host:port of brokers.")
    ] = None,
    config: Config = None,
    model: Annotated[
        str | None,
        typer.Option(help="For lines that name none; default: the first served."),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="For lines that do not say.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=4096, help="Most lines in flight.")] = 64,
    patience: Annotated[float, typer.Option(min=0, help="Seconds for which the API may be away.")] = 300,
    ordered: Annotated[bool, typer.Option("--ordered", help="Sort the results at the end.")] = False,
    as_json: Json = False,
) -> None:
    """Run each line of a file as a request of class batch, and write the results as OpenAI's batches do.

    The same command again goes on where it was stopped: no line is lost, none comes twice.
    """
    from headrace.batch.input_file import InputFile
    from headrace.batch.journal import Journal
    from headrace.batch.progress import RunCounts

    if out.exists() and source.exists() and out.samefile(source):
        raise ConfigError("the output cannot be the input")
    given = InputFile.scan(source)
    journal = Journal.open(out, given)
    try:
        counts = RunCounts(given.requests, journal.done, journal.failed)
        stopped = False
        if not journal.complete:
            settings = settings_for(kafka, config) if kafka else None
            at = (url, api_key)
            defaults = _defaults(journal, model, max_tokens, settings, at)
            line_runner = (
                _kafka(journal, defaults, settings) if settings else _http(journal, defaults, at, patience)
            )
            stopped = _work(given, journal, counts, defaults, line_runner, concurrency=concurrency)
        if journal.complete:
            journal.finish(ordered=ordered)
    except HeadraceError:
        err.print(f"{journal.done} of {given.requests} lines are done: the same command goes on", style="yellow")
        raise
    finally:
        journal.close()
    _tell(counts.summary() | {"out": str(out), "stopped": stopped}, as_json)
    if stopped:
        raise typer.Exit(INTERRUPTED)


def _defaults(
    journal: Journal, model: str | None, max_tokens: int | None, settings: Settings | None, at: At
) -> Defaults:
    """What lines get that do not say it; a run that is gone on with keeps what it began with."""
    from headrace.batch.input_file import Defaults

    before = journal.identity.defaults if journal.identity else None
    if before is None or not before.model:
        return Defaults(model or (_model_of(settings) if settings else _first_model(at)), max_tokens)
    if model not in (None, before.model) or max_tokens not in (None, before.max_tokens):
        raise ConfigError(f"the run was begun with model {before.model} and max_tokens {before.max_tokens}")
    return before


def _model_of(settings: Settings) -> str:
    from shared.models.model_store import ModelRepository

    return ModelRepository(settings).served_name


def _first_model(at: At) -> str:
    with client_at(*at) as client:
        return first_model(client)


def _http(journal: Journal, defaults: Defaults, at: At, patience: float) -> OpenLineRunner:
    from headrace.batch.http_runner import HttpLineRunner

    journal.begin(defaults)
    if journal.result_offsets is not None:
        raise ConfigError("the run was begun over Kafka: give --kafka")
    url, api_key = at
    return HttpLineRunner(url.split(","), journal.run, api_key=api_key, patience=patience)


def _kafka(journal: Journal, defaults: Defaults, settings: Settings) -> OpenLineRunner:
    from headrace.batch.kafka_runner import KafkaLineRunner, current_end_offsets

    if journal.identity is None:
        journal.begin(defaults, current_end_offsets(settings))
    if journal.result_offsets is None:
        raise ConfigError("the run was begun over HTTP: leave --kafka out")
    return KafkaLineRunner(settings, journal.run, journal.result_offsets, journal.is_missing)


def _work(
    source: InputFile,
    journal: Journal,
    counts: RunCounts,
    defaults: Defaults,
    line_runner: OpenLineRunner,
    *,
    concurrency: int,
) -> bool:
    """Whether it was stopped before its end."""
    from headrace.batch.progress import progress_bar
    from headrace.batch.runner import Runner

    async def work() -> bool:
        async with line_runner as opened:
            lines = source.read(journal.is_missing, defaults)
            runner = Runner(lines, journal, opened, counts, concurrency=concurrency)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, runner.stop)
            await runner.run()
            return runner.stopped

    with progress_bar(counts, err):
        return asyncio.run(work())


def _tell(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(told))
        return
    state = "stopped; the same command goes on" if told["stopped"] else "done"
    err.print(
        f"{told['done']} of {told['lines']} lines {state}: {told['failed']} failed, {told['completion_tokens']} "
        f"tokens in {told['seconds']:.1f} s ({told['tokens_per_second']:.0f}/s), in {escape(told['out'])}",
        highlight=False,
    )
