"""`headrace up`, `api` and `tasks`: the commands that start processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import Config, Model, RedisUrl, stderr
from shared.errors import ConfigError

if TYPE_CHECKING:
    from shared.settings import Settings

Host = Annotated[str | None, typer.Option(help="Address that the API listens on.")]
Port = Annotated[int | None, typer.Option(help="Port that the API listens on; 0 picks a free one.")]
GrpcPort = Annotated[int | None, typer.Option(help="Port of the gRPC API; 0 picks a free one.")]
EmbeddingModel = Annotated[
    str | None, typer.Option(help="Second model, for embeddings: folder, Hugging Face id or all-minilm-l6-v2.")
]
ServedName = Annotated[str | None, typer.Option("--served-model-name", help="Name of the model for clients.")]
Repository = Annotated[
    Path | None,
    typer.Option("--model-repository", help="Folder of models in Triton's layout; without --model, only these."),
]
DataDir = Annotated[Path | None, typer.Option(help="Folder for the data of the embedded Valkey, and for logs.")]
Upstream = Annotated[
    str | None, typer.Option(help="Base URL of an OpenAI-compatible server that executes the requests.")
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:<n>.")]


def up(
    config: Config = None,
    host: Host = None,
    port: Port = None,
    grpc_port: GrpcPort = None,
    model: Model = None,
    served_model_name: ServedName = None,
    embedding_model: EmbeddingModel = None,
    model_repository: Repository = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    upstream: Upstream = None,
    workers: Annotated[int | None, typer.Option(help="Number of worker processes.")] = None,
    device: Device = None,
    auth: Annotated[bool | None, typer.Option("--auth", help="Require an API key.")] = None,
    ask: Annotated[str | None, typer.Option(help="Ask one question, print the answer, and stop.")] = None,
    verbose: Annotated[bool, typer.Option(help="Print the logs of all processes.")] = False,
) -> None:
    """Start everything on this machine: queue, API and workers."""
    from shared.runtime.gc_tuning import importing

    with importing():
        from headrace.launcher.up import Up
        from shared.runtime.logging import configure_logging
        from shared.settings import load

    flags = {
        "host": host,
        "port": port,
        "grpc_port": grpc_port,
        "model": model,
        "served_model_name": served_model_name,
        "embedding_model": embedding_model,
        "model_repository": model_repository,
        "data_dir": data_dir,
        "redis_url": redis_url,
        **upstream_flags(upstream),
        "workers": workers,
        "device": device,
        "auth": auth,
    }
    loaded = load(flags, file=config)
    own_server = loaded.origin["redis_url"] == "default"
    configure_logging(loaded.settings.model_copy(update={"log_level": "warning"}), process="up")
    Up(loaded.settings, own_server=own_server, verbose=verbose, console=stderr).run(ask)


def api(
    config: Config = None,
    host: Host = None,
    port: Port = None,
    grpc_port: GrpcPort = None,
    redis_url: RedisUrl = None,
) -> None:
    """Run one API process."""
    from shared.settings import load

    flags = {"host": host, "port": port, "grpc_port": grpc_port, "redis_url": redis_url}
    settings = load(flags, file=config).settings
    serve = entry_point("producer_api.server", "serve", "api")
    serve(settings)


def tasks(config: Config = None, redis_url: RedisUrl = None) -> None:
    """Run one tasks process: batches, tasks sent by Celery clients, upkeep."""
    from shared.settings import load

    settings = load({"redis_url": redis_url}, file=config).settings
    run = entry_point("producer_api.batch_runner.process", "run", "tasks")
    run(settings)


def upstream_flags(url: str | None) -> dict[str, str | None]:
    """Return the settings of the option --upstream."""
    return {"upstream_url": url, "runtime": None if url is None else "upstream"}


def entry_point(module: str, name: str, extra: str) -> Callable[[Settings], None]:
    """Import the function that runs a process. Raises ConfigError if a package that it needs is not installed."""
    import importlib

    from shared.runtime.gc_tuning import importing

    try:
        with importing():
            function: Callable[[Settings], None] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ConfigError(f"{error}: install headrace[{extra}]") from error
    return function
