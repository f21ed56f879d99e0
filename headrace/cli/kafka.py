"""`headrace kafka`: puts requests into topics, and shows the results."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from headrace.cli.options import Json
from shared.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from headrace.batch.input_file import Line
    from shared.kafka.message import Record
    from shared.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Requests into Kafka's topics, results out of them.")

POLL = 0.2  # seconds
AT_ONCE = 1000  # records sent before the first of them is waited for

err = Console(stderr=True)

Bootstrap = Annotated[
    str | None, typer.Option("--bootstrap", help="host:port of brokers, by commas; default: the setting.")
]
Config = Annotated[Path | None, typer.Option("--config", help="Settings file: TLS and SASL are settings.")]
ModelName = Annotated[str | None, typer.Option("--model", help="For lines that name none; default: the setting.")]


def settings_for(bootstrap: str | None, config: Path | None = None) -> Settings:
    """Raises ConfigError, also where kafka-python is not installed."""
    from shared.settings import load

    try:
        import kafka  # noqa: F401  only to say so in time
    except ImportError as error:
        raise ConfigError(f"{error}: install headrace[kafka]") from error
    settings = load({"kafka_bootstrap": bootstrap}, file=config).settings
    if not settings.kafka_bootstrap:
        raise ConfigError("no brokers: give --bootstrap or HEADRACE_KAFKA_BOOTSTRAP", param="kafka_bootstrap")
    return settings


@app.command()
def submit(
    prompt: Annotated[str | None, typer.Argument(help="The user's message; - reads it from stdin.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file of lines, as `headrace batch run` takes them.")] = None,
    bootstrap: Bootstrap = None,
    config: Config = None,
    model: ModelName = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of an answer that does not say.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--id", help="Id of the event, or of a file's before -<line>: sent again, run once."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put requests into the topic of their model, and print the ids of their events, which their results name."""
    from headrace.batch.input_file import Defaults
    from shared.models.model_store import ModelRepository

    if (prompt is None) == (file is None):
        raise ConfigError("give either a prompt or --file")
    settings = settings_for(bootstrap, config)
    defaults = Defaults(model or ModelRepository(settings).served_name, max_tokens)
    given = name or secrets.token_hex(8)
    text = sys.stdin.read() if prompt == "-" else prompt
    failed = 0
    for line, sent in _send(settings, _lines(text, file, defaults), given, single=file is None):
        if isinstance(sent, HeadraceError):
            failed += 1
            err.print(f"line {line.number}: {escape(sent.message)}", style="red", highlight=False)
        else:
            print(json.dumps({"id": sent[0], **sent[1]}) if as_json else sent[0])
    if failed:
        raise typer.Exit(1)


def _lines(text: str | None, file: Path | None, defaults: Any) -> Iterator[Line]:
    from headrace.batch.input_file import JOBS_URL, InputFile, Line

    if file is not None:
        return InputFile.scan(file).read(lambda number: True, defaults)
    body = {"messages": [{"role": "user", "content": text}]}
    return iter([Line(1, None, JOBS_URL, defaults.apply(body))])


def _send(
    settings: Settings, lines: Iterator[Line], name: str, *, single: bool
) -> Iterator[tuple[Line, tuple[str, dict[str, Any]] | HeadraceError]]:
    """Each line with the id of its event and where it is, or with what is wrong. Raises Unavailable."""
    from kafka.errors import KafkaError, MessageSizeTooLargeError

    from headrace.batch.kafka_records import to_kafka_record
    from shared.errors import PayloadTooLarge
    from shared.kafka.connection import producer, unavailable

    def settled(waiting: list[tuple[Line, str, Any]]) -> Iterator[tuple[Line, tuple[str, dict[str, Any]]]]:
        for line, event_id, delivery in waiting:
            at = delivery.get(timeout=60)
            yield line, (event_id, {"topic": at.topic, "partition": at.partition, "offset": at.offset})
        waiting.clear()

    try:
        writer = producer(settings, linger_ms=5)
    except KafkaError as error:
        raise unavailable(error) from error
    waiting: list[tuple[Line, str, Any]] = []
    try:
        for line in lines:
            event_id = name if single else f"{name}-{line.number}"
            try:
                if line.error is not None:
                    raise line.error
                record = to_kafka_record(line, event_id, event_id)
                waiting.append((line, event_id, writer.send(**record.arguments())))
            except MessageSizeTooLargeError:
                yield line, PayloadTooLarge("the request is too long for Kafka's topic")
            except HeadraceError as error:
                yield line, error
            if len(waiting) >= AT_ONCE:
                yield from settled(waiting)
        yield from settled(waiting)
    except KafkaError as error:
        raise unavailable(error) from error
    finally:
        writer.close(timeout=5)


@app.command()
def tail(
    bootstrap: Bootstrap = None,
    config: Config = None,
    topic: Annotated[str | None, typer.Option(help="Default: headrace.results.")] = None,
    event: Annotated[
        list[str] | None, typer.Option("--id", help="Only results of these events; may repeat.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay, and show what comes.")] = False,
    new: Annotated[bool, typer.Option("--new", help="Only what comes from now on.")] = False,
    as_json: Json = False,
) -> None:
    """Show committed results, each with the id of its request's event; with --id until all of those are there."""
    from headrace.batch.kafka_reader import TopicReader
    from shared.kafka import topics

    settings = settings_for(bootstrap, config)
    names = [topic or topics.RESULTS]
    wanted = set(event or ())
    with TopicReader(settings, names, {}) as looking:
        ends = looking.end_offsets()
    try:
        with TopicReader(settings, names, ends if new else {}) as reader:
            while True:
                for record in reader.poll(POLL):
                    shown = _show(record, wanted if event else None, as_json)
                    wanted.discard(shown or "")
                if (event and not wanted) or not (follow or event or not reader.has_reached(ends)):
                    return
    except KeyboardInterrupt:
        return


def _show(record: Record, wanted: set[str] | None, as_json: bool) -> str | None:
    """The id of the result's event, where it was shown."""
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
        print(json.dumps({"id": event_id, "offset": record.source, "job": job}), flush=True)
        return event_id
    try:
        told = read_result(record)
    except HeadraceError as error:
        print(f"{event_id} ?  {error.message}", flush=True)
        return event_id
    text = told.choices[0].text if told.choices else told.error.message if told.error else ""
    print(f"{event_id} {told.state}  {text}", flush=True)
    return event_id
