"""`headrace kafka`: send requests to topics, and print the results."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from headrace.cli.options import Json, print_json, read_text, stderr
from headrace.terminal import print_text
from shared.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from headrace.batch.input_file import Line
    from shared.kafka.message import Record
    from shared.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Send requests to Kafka topics, and print results.")

POLL_S = 0.2
MAX_PENDING = 1000  # records sent before waiting for their delivery
CLOSE_LIMIT_S = 5.0  # for records that were sent when the command fails

Bootstrap = Annotated[
    str | None, typer.Option("--bootstrap", help="host:port of brokers, separated by commas; default: the setting.")
]
Config = Annotated[Path | None, typer.Option("--config", help="Settings file, for example for TLS and SASL.")]
ModelName = Annotated[
    str | None, typer.Option("--model", help="Model of lines that name none; default: the setting.")
]


def settings_for(bootstrap: str | None, config: Path | None = None) -> Settings:
    """Return the settings with brokers. Raises ConfigError if there are no brokers, or no kafka-python."""
    from shared.settings import load

    try:
        import kafka  # noqa: F401  to report a missing package before anything else
    except ImportError as error:
        raise ConfigError(f"{error}: install headrace[kafka]") from error
    settings = load({"kafka_bootstrap": bootstrap}, file=config).settings
    if not settings.kafka_bootstrap:
        raise ConfigError("no brokers: set --bootstrap or HEADRACE_KAFKA_BOOTSTRAP", param="kafka_bootstrap")
    return settings


@app.command()
def submit(
    prompt: Annotated[str | None, typer.Argument(help="The user's message; - reads it from stdin.")] = None,
    file: Annotated[Path | None, typer.Option(help="File of lines, in the format of `headrace batch run`.")] = None,
    bootstrap: Bootstrap = None,
    config: Config = None,
    model: ModelName = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of tokens of requests that set none.")
    ] = None,
    event_name: Annotated[
        str | None,
        typer.Option("--id", help="Id of the event (with --file, followed by -<line>); the same id runs once."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Send requests to the topic of their model, and print their event ids, by which results are found."""
    from headrace.batch.input_file import Defaults
    from shared.models.model_store import ModelRepository

    if (prompt is None) == (file is None):
        raise ConfigError("give either a prompt or --file")
    settings = settings_for(bootstrap, config)
    defaults = Defaults(model or ModelRepository(settings).served_name, max_tokens)
    id_prefix = event_name or secrets.token_hex(8)
    text = read_text(Path("-"), "prompt") if prompt == "-" else prompt
    failed = 0
    for line, outcome in _send(settings, _lines(text, file, defaults), id_prefix, single=file is None):
        if isinstance(outcome, HeadraceError):
            failed += 1
            stderr.print(f"line {line.number}: {escape(outcome.message)}", style="red", highlight=False)
        else:
            event_id, position = outcome
            if as_json:
                print_json({"id": event_id, **position})
            else:
                print(event_id)
    if failed:
        raise typer.Exit(1)


def _lines(text: str | None, file: Path | None, defaults: Any) -> Iterator[Line]:
    from headrace.batch.input_file import JOBS_URL, InputFile, Line

    if file is not None:
        return InputFile.scan(file).read(lambda number: True, defaults)
    body = {"messages": [{"role": "user", "content": text}]}
    return iter([Line(1, None, JOBS_URL, defaults.apply(body))])


def _send(
    settings: Settings, lines: Iterator[Line], event_name: str, *, single: bool
) -> Iterator[tuple[Line, tuple[str, dict[str, Any]] | HeadraceError]]:
    """Yield each line with its event id and its position in the topic, or with its error. Raises Unavailable."""
    from kafka.errors import KafkaError

    from headrace.batch.kafka_records import to_kafka_record
    from shared.errors import PayloadTooLarge
    from shared.kafka.connection import SIZE_ERRORS, close_producer, producer, unavailable

    too_large = PayloadTooLarge("the request is too long for its Kafka topic")

    def delivered(
        pending: list[tuple[Line, str, Any]],
    ) -> Iterator[tuple[Line, tuple[str, dict[str, Any]] | HeadraceError]]:
        for line, event_id, delivery in pending:
            try:
                at = delivery.get(timeout=60)
            except SIZE_ERRORS:
                yield line, too_large
            else:
                yield line, (event_id, {"topic": at.topic, "partition": at.partition, "offset": at.offset})
        pending.clear()

    try:
        writer = producer(settings, linger_ms=5)
    except KafkaError as error:
        raise unavailable(error) from error
    pending: list[tuple[Line, str, Any]] = []
    try:
        for line in lines:
            event_id = event_name if single else f"{event_name}-{line.number}"
            try:
                if line.error is not None:
                    raise line.error
                record = to_kafka_record(line, event_id, event_id)
                pending.append((line, event_id, writer.send(**record.arguments())))
            except SIZE_ERRORS:
                yield line, too_large
            except HeadraceError as error:
                yield line, error
            if len(pending) >= MAX_PENDING:
                yield from delivered(pending)
        yield from delivered(pending)
    except KafkaError as error:
        raise unavailable(error) from error
    finally:
        close_producer(writer, CLOSE_LIMIT_S)


@app.command()
def tail(
    bootstrap: Bootstrap = None,
    config: Config = None,
    topic: Annotated[str | None, typer.Option(help="Topic to read; default: headrace.results.")] = None,
    event: Annotated[
        list[str] | None, typer.Option("--id", help="Print only results of this event; may be repeated.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep running, and print new results.")] = False,
    new: Annotated[bool, typer.Option("--new", help="Print only results that arrive from now on.")] = False,
    as_json: Json = False,
) -> None:
    """Print committed results, each with its event id. With --id, wait until those results have arrived."""
    from headrace.batch.kafka_reader import TopicReader
    from shared.kafka import topics

    settings = settings_for(bootstrap, config)
    names = [topic or topics.RESULTS]
    wanted = set(event or ())
    with TopicReader(settings, names, {}) as end_reader:
        ends = end_reader.end_offsets()
    try:
        with TopicReader(settings, names, ends if new else {}) as reader:
            while True:
                for record in reader.poll(POLL_S):
                    shown = _print_result(record, wanted if event else None, as_json)
                    wanted.discard(shown or "")
                if (event and not wanted) or not (follow or event or not reader.has_reached(ends)):
                    return
    except KeyboardInterrupt:
        return


def _print_result(record: Record, wanted: set[str] | None, as_json: bool) -> str | None:
    """Print a result. Return its event id, or None if it is not wanted."""
    from headrace.batch.kafka_records import readable_header
    from shared.kafka.message import read_result

    event_id = readable_header(record, "ce_subject") or record.source
    if wanted is not None and event_id not in wanted:
        return None
    if as_json:
        try:
            job = json.loads(record.value)
        except ValueError:
            job = None
        print_json({"id": event_id, "offset": record.source, "job": job})
        return event_id
    try:
        job = read_result(record)
    except HeadraceError as error:
        print_text(f"{event_id} ?  {error.message}")
        return event_id
    text = job.choices[0].text if job.choices else job.error.message if job.error else ""
    print_text(f"{event_id} {job.state}  {text}")
    return event_id
