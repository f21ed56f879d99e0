"""`headrace batch`: run a file of requests, and resume it after Ctrl-C or a crash."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from headrace.cli.kafka import Config, settings_for
from headrace.cli.options import DEFAULT_URL, ApiKey, Json, Url, client_at, first_model, print_json, stderr
from shared.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from headrace.batch.input_file import Defaults, InputFile
    from headrace.batch.journal import Journal
    from headrace.batch.progress import RunCounts
    from headrace.batch.runner import LineRunner
    from shared.settings import Settings

    OpenRunner = AbstractAsyncContextManager[LineRunner]

app = typer.Typer(no_args_is_help=True, help="Run files of requests, and resume them after Ctrl-C or a crash.")

ApiAddress = tuple[str, str | None]  # the URL of the API, and the API key
ModelName = Annotated[str | None, typer.Option(help="Model of lines that name none; default: the first served.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Maximum number of tokens of lines that set none.")]
INTERRUPTED_STATUS = 130  # the exit status that shells use for Ctrl-C


@app.callback()
def _group() -> None:
    """Keep `run` a subcommand although it is the only one."""


@app.command()
def run(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="File of OpenAI batch lines, request bodies or JSON strings.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the results; an unfinished one is resumed.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    kafka: Annotated[
        str | None, typer.Option(metavar="BOOTSTRAP", help="Run over Kafka topics: host:port of brokers.")
    ] = None,
    config: Config = None,
    model: ModelName = None,
    max_tokens: MaxTokens = None,
    concurrency: Annotated[int, typer.Option(min=1, max=4096, help="Maximum number of lines in flight.")] = 64,
    patience: Annotated[float, typer.Option(min=0, help="For how many seconds the API may be unreachable.")] = 300,
    ordered: Annotated[bool, typer.Option("--ordered", help="Sort the results by input line at the end.")] = False,
    as_json: Json = False,
) -> None:
    """Run each line of a file as a request of class batch, and write the results in the format of OpenAI's batches.

    Run the same command again to resume a stopped run: no line is lost or repeated.
    """
    from headrace.batch.input_file import InputFile
    from headrace.batch.journal import Journal
    from headrace.batch.progress import RunCounts

    if out.exists() and source.exists() and out.samefile(source):
        raise ConfigError("--out must not be the input file")
    source_file = InputFile.scan(source)
    journal = Journal.open(out, source_file)
    meter = RunCounts(source_file.requests, journal.done, journal.failed)
    stopped = False
    try:
        if not journal.complete:
            settings = settings_for(kafka, config) if kafka else None
            address = (url, api_key)
            defaults = _line_defaults(journal, model, max_tokens, settings, address)
            way = _kafka(journal, defaults, settings) if settings else _http(journal, defaults, address, patience)
            stopped = _run_lines(source_file, journal, meter, defaults, way, concurrency=concurrency)
        if journal.complete:
            journal.finish(ordered=ordered)
    except HeadraceError:
        _print_resumable(journal, source_file)
        raise
    finally:
        journal.close()
    _print_summary(meter.summary() | {"out": str(out), "stopped": stopped}, as_json)
    if stopped:
        raise typer.Exit(INTERRUPTED_STATUS)


def _print_resumable(journal: Journal, source: InputFile) -> None:
    done = f"{journal.done} of {source.requests} lines are done"
    stderr.print(f"{done}; run the same command again to resume", style="yellow")


def _line_defaults(
    journal: Journal, model: str | None, max_tokens: int | None, settings: Settings | None, address: ApiAddress
) -> Defaults:
    """Return the model and max_tokens of lines that set none. A resumed run keeps those it was started with."""
    from headrace.batch.input_file import Defaults

    previous = journal.identity.defaults if journal.identity else None
    if previous is None or not previous.model:
        return Defaults(model or (_model_of_settings(settings) if settings else _first_model(address)), max_tokens)
    if model not in (None, previous.model) or max_tokens not in (None, previous.max_tokens):
        raise ConfigError(
            f"the run was started with model {previous.model} and max_tokens {previous.max_tokens}; use the same"
        )
    return previous


def _model_of_settings(settings: Settings) -> str:
    from shared.models.model_store import ModelRepository

    return ModelRepository(settings).served_name


def _first_model(address: ApiAddress) -> str:
    with client_at(*address) as client:
        return first_model(client)


def _http(journal: Journal, defaults: Defaults, address: ApiAddress, patience: float) -> OpenRunner:
    from headrace.batch.http_runner import HttpLineRunner

    journal.begin(defaults)
    if journal.result_offsets is not None:
        raise ConfigError("the run was started over Kafka; set --kafka")
    url, api_key = address
    return HttpLineRunner(url.split(","), journal.run, api_key=api_key, patience=patience)


def _kafka(journal: Journal, defaults: Defaults, settings: Settings) -> OpenRunner:
    from headrace.batch.kafka_runner import KafkaLineRunner, current_end_offsets

    if journal.identity is None:
        journal.begin(defaults, current_end_offsets(settings))
    if journal.result_offsets is None:
        raise ConfigError("the run was started over HTTP; omit --kafka")
    return KafkaLineRunner(settings, journal.run, journal.result_offsets, journal.is_missing)


def _run_lines(
    source: InputFile, journal: Journal, meter: RunCounts, defaults: Defaults, way: OpenRunner, *, concurrency: int
) -> bool:
    """Run the missing lines. Return True if a signal stopped the run."""
    from headrace.batch.progress import progress_bar
    from headrace.batch.runner import Runner

    async def run_lines() -> bool:
        async with way as opened:
            lines = source.read(journal.is_missing, defaults)
            runner = Runner(lines, journal, opened, meter, concurrency=concurrency)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, runner.stop)
            await runner.run()
            return runner.stopped

    with progress_bar(meter, stderr):
        return asyncio.run(run_lines())


def _print_summary(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(summary)
        return
    state = "stopped; run the same command again to resume" if summary["stopped"] else "done"
    stderr.print(
        f"{summary['done']} of {summary['lines']} lines {state}: {summary['failed']} failed, "
        f"{summary['completion_tokens']} tokens in {summary['seconds']:.1f} s "
        f"({summary['tokens_per_second']:.0f}/s), results in {escape(summary['out'])}",
        highlight=False,
    )
