"""The command line. Each command imports what it needs when it runs, so that `headrace --help` is quick."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from headrace import __version__
from headrace.cli.api_keys import app as keys_app
from headrace.cli.batch import app as batch_app
from headrace.cli.dead_letters import app as letters_app
from headrace.cli.kafka import app as kafka_app
from headrace.cli.options import STEADY, URL, ApiKey, Config, Json, Url, client_at, first_model
from headrace.cli.usage import usage
from shared.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from shared.settings import Loaded, Settings

app = typer.Typer(
    name="headrace",
    help="Queue-driven LLM inference: an accepted answer is never lost.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(no_args_is_help=True, help="Settings and where they come from.")
app.add_typer(config_app, name="config")
app.add_typer(letters_app, name="dead-letters")
app.add_typer(batch_app, name="batch")
app.add_typer(kafka_app, name="kafka")
app.command("usage")(usage)
app.add_typer(keys_app, name="keys")

err = Console(stderr=True)

Host = Annotated[str | None, typer.Option(help="Address the API listens on.")]
Port = Annotated[int | None, typer.Option(help="Port the API listens on; 0 picks a free one.")]
GrpcPort = Annotated[int | None, typer.Option(help="Port of the same by gRPC; 0 picks a free one.")]
RedisUrl = Annotated[str | None, typer.Option(help="Redis or Valkey to use.")]
Model = Annotated[str | None, typer.Option(help="Folder, Hugging Face id, smollm2 or all-minilm-l6-v2.")]
EmbeddingModel = Annotated[
    str | None, typer.Option(help="A second model, to embed: folder, Hugging Face id, or all-minilm-l6-v2.")
]
ServedName = Annotated[str | None, typer.Option("--served-model-name", help="Name that clients use.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of the embedded Valkey's data and of the logs.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:<n>.")]
Workers = Annotated[int | None, typer.Option(help="Worker processes.")]
JobId = Annotated[str, typer.Argument(help="The job's id.")]
ModelName = Annotated[str | None, typer.Option("--model", help="A served model; default: the first.")]


def main() -> None:
    """The entry point: a HeadraceError is one line and exit code 1, or 2 for a wrong setting."""
    try:
        app()
    except HeadraceError as error:
        err.print(f"[bold red]error:[/] {_escaped(error.message)}", soft_wrap=True, highlight=False)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _load(config: Path | None = None, **flags: Any) -> Loaded:
    from shared.settings import load

    return load(flags, file=config)


@app.command()
def up(
    config: Config = None,
    host: Host = None,
    port: Port = None,
    grpc_port: GrpcPort = None,
    model: Model = None,
    served_model_name: ServedName = None,
    embedding_model: EmbeddingModel = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    workers: Workers = None,
    device: Device = None,
    auth: Annotated[bool | None, typer.Option("--auth", help="Ask every caller for an API key.")] = None,
    ask: Annotated[str | None, typer.Option(help="Ask one question, print the answer, stop.")] = None,
    verbose: Annotated[bool, typer.Option(help="Show the processes' logs here.")] = False,
) -> None:
    """Start everything on this machine: queue, API and workers."""
    from headrace.launcher.up import Up

    loaded = _load(
        config,
        host=host,
        port=port,
        grpc_port=grpc_port,
        model=model,
        served_model_name=served_model_name,
        embedding_model=embedding_model,
        data_dir=data_dir,
        redis_url=redis_url,
        workers=workers,
        device=device,
        auth=auth,
    )
    own_server = loaded.origin["redis_url"] == "default"
    _logging(loaded.settings.model_copy(update={"log_level": "warning"}), "up")
    Up(loaded.settings, own_server=own_server, verbose=verbose, console=err).run(ask)


@app.command()
def api(
    config: Config = None,
    host: Host = None,
    port: Port = None,
    grpc_port: GrpcPort = None,
    redis_url: RedisUrl = None,
) -> None:
    """Run one API process."""
    settings = _load(config, host=host, port=port, grpc_port=grpc_port, redis_url=redis_url).settings
    serve = _part("producer_api.server", "serve", "api")
    serve(settings)


@app.command()
def worker(
    config: Config = None,
    model: Model = None,
    served_model_name: ServedName = None,
    redis_url: RedisUrl = None,
    device: Device = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of /metrics; 0 picks one.")] = None,
) -> None:
    """Run one worker process."""
    settings = _load(
        config,
        model=model,
        served_model_name=served_model_name,
        redis_url=redis_url,
        device=device,
        metrics_port=metrics_port,
    ).settings
    _logging(settings, "worker")
    run = _part("workers.main", "run", "worker")
    run(settings)


@app.command()
def tasks(config: Config = None, redis_url: RedisUrl = None) -> None:
    """Run one tasks process: batches, tasks of Celery's users, upkeep."""
    settings = _load(config, redis_url=redis_url).settings
    run = _part("producer_api.batch_runner.process", "run", "tasks")
    run(settings)


def _part(module: str, name: str, extra: str) -> Callable[[Settings], None]:
    """A process's entry point. Raises ConfigError where what it needs is not installed."""
    import importlib

    try:
        found: Callable[[Settings], None] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ConfigError(f"{error}: install headrace[{extra}]") from error
    return found


def _logging(settings: Settings, process: str) -> None:
    from shared.runtime.logging import configure_logging

    configure_logging(settings, process=process)


@app.command()
def chat(
    url: Url = URL,
    api_key: ApiKey = None,
    model: ModelName = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of one answer.")] = None,
) -> None:
    """Talk to a model; Ctrl-C stops an answer, Ctrl-D or /quit ends."""
    from headrace.cli.chat import Chat

    with client_at(url, api_key, STEADY) as client:
        options = {"temperature": temperature} | ({"max_tokens": max_tokens} if max_tokens else {})
        Chat(client, _served(client, model), system, options, Console()).run()


def _served(client: Any, model: str | None) -> str:
    return model or first_model(client)


@app.command()
def submit(
    prompt: Annotated[str, typer.Argument(help="The user's message; - reads it from stdin.")],
    url: Url = URL,
    api_key: ApiKey = None,
    model: ModelName = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of the answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes a sampled answer repeatable.")] = None,
    priority: Annotated[str, typer.Option(help="interactive, standard or batch.")] = "standard",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stream the answer.")] = False,
    as_json: Json = False,
) -> None:
    """Submit a job, which goes on by itself, and print its id."""
    text = sys.stdin.read() if prompt == "-" else prompt
    with client_at(url, api_key, STEADY) if follow else client_at(url, api_key) as client:
        body: dict[str, Any] = {
            "model": _served(client, model),
            "messages": [{"role": "user", "content": text}],
            "priority": priority,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        job = client.submit({name: value for name, value in body.items() if value is not None})
        if not follow:
            print(json.dumps(job) if as_json else job["id"])
            return
        err.print(job["id"], style="dim")
        _follow(client, job["id"], -1, as_json)


@app.command()
def tail(
    job_id: JobId,
    url: Url = URL,
    api_key: ApiKey = None,
    after: Annotated[int, typer.Option(help="Seq of the last token seen.")] = -1,
    as_json: Json = False,
) -> None:
    """Stream a job's answer from any point, through lost connections."""
    with client_at(url, api_key, STEADY) as client:
        _follow(client, job_id, after, as_json)


def _follow(client: Any, job_id: str, after: int, as_json: bool) -> None:
    for event in client.events(job_id, after):
        if as_json:
            print(json.dumps({"seq": event.seq, "event": event.name, **event.data}), flush=True)
        elif event.name == "token":
            print("".join(token["text"] for token in event.data["tokens"]), end="", flush=True)
        else:
            print()
            if event.name != "done":
                problem = event.data.get("error") or {}
                raise HeadraceError(f"the job ended {event.name}: {problem.get('message', 'as it was told to')}")


@app.command()
def cancel(job_id: JobId, url: Url = URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Cancel a job."""
    with client_at(url, api_key) as client:
        job = client.cancel(job_id)
    print(json.dumps(job) if as_json else f"{job['id']} {job['state']}")


@app.command()
def models(url: Url = URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """List the models that are served."""
    with client_at(url, api_key) as client:
        found = client.models()
    if as_json:
        print(json.dumps(found))
        return
    for model in found:
        print(model["id"])


@app.command()
def doctor(config: Config = None, redis_url: RedisUrl = None, model: Model = None, as_json: Json = False) -> None:
    """Check what Headrace needs on this machine, and say what to do where it lacks."""
    from headrace.doctor.checks import examine

    loaded = _load(config, redis_url=redis_url, model=model)
    findings = examine(loaded)
    if as_json:
        print(json.dumps([finding.__dict__ for finding in findings]))
    else:
        marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failed": "[red]failed[/]"}
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for finding in findings:
            remedy = f"\n[dim]{_escaped(finding.remedy)}[/]" if finding.remedy else ""
            table.add_row(marks[finding.status], finding.what, _escaped(finding.found) + remedy)
        Console().print(table)
    if any(finding.status == "failed" for finding in findings):
        raise typer.Exit(1)


@config_app.command("show")
def config_show(config: Config = None, as_json: Json = False) -> None:
    """Each setting's value, and whether a flag, the environment, a file or the default gave it."""
    loaded = _load(config)
    values = loaded.settings.model_dump(mode="json")
    if as_json:
        print(json.dumps({name: {"value": value, "from": loaded.origin[name]} for name, value in values.items()}))
        return
    table = Table("setting", "value", "from", "what it is", box=None, padding=(0, 2, 0, 0))
    fields = type(loaded.settings).model_fields
    for name, value in values.items():
        origin = loaded.origin[name]
        style = "dim" if origin == "default" else "bold"
        table.add_row(name, _escaped(str(value)), origin, fields[name].description, style=style)
    Console().print(table)


@app.command()
def version(as_json: Json = False) -> None:
    """Print the version."""
    print(json.dumps({"version": __version__}) if as_json else __version__)


def _add_benchmarks() -> None:
    from headrace.cli.bench import app as bench_app

    app.add_typer(bench_app, name="bench")


_add_benchmarks()
