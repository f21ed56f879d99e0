"""`headrace worker`: run a worker, or order running ones to leave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli import processes
from headrace.cli.options import Config, Json, Model, RedisUrl, print_json
from headrace.terminal import print_text
from shared.errors import ConfigError, HeadraceError, NotFound

if TYPE_CHECKING:
    from shared.models.worker_registry import WorkerInfo
    from shared.settings import Settings

MARGIN_S = 10.0  # in addition to the grace time, until a drained worker must be gone
POLL_S = 0.1

app = typer.Typer(invoke_without_command=True, help="Run one worker process, or order running ones to leave.")


@app.callback()
def worker(
    context: typer.Context,
    config: Config = None,
    model: Model = None,
    served_model_name: processes.ServedName = None,
    model_repository: processes.Repository = None,
    redis_url: RedisUrl = None,
    upstream: processes.Upstream = None,
    device: processes.Device = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of /metrics; 0 picks a free one.")] = None,
) -> None:
    """Run one worker process: it serves one model, or all those of a repository."""
    if context.invoked_subcommand is not None:
        return
    from shared.runtime.logging import configure_logging
    from shared.settings import load

    flags = {
        "model": model,
        "served_model_name": served_model_name,
        "model_repository": model_repository,
        "redis_url": redis_url,
        **processes.upstream_flags(upstream),
        "device": device,
        "metrics_port": metrics_port,
    }
    settings = load(flags, file=config).settings
    configure_logging(settings, process="worker")
    run = processes.entry_point("workers.main", "run", "worker")
    run(settings)


@app.command()
def drain(
    worker_id: Annotated[str | None, typer.Argument(metavar="WORKER", help="Id of the worker.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Drain all workers.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Hand the running answers over at once.")] = False,
    config: Config = None,
    redis_url: RedisUrl = None,
    as_json: Json = False,
) -> None:
    """Order workers to leave, and wait until they are gone: they finish within `grace`, or hand over."""
    from shared.settings import load

    if every == (worker_id is not None):
        raise ConfigError("name one worker, or use --all")
    settings = load({"redis_url": redis_url}, file=config).settings
    gone = asyncio.run(_drain(settings, worker_id, now=now))
    if as_json:
        print_json({"drained": gone})
    else:
        print_text("\n".join(f"{each} is gone" for each in gone) or "no worker is running")


async def _drain(settings: Settings, worker_id: str | None, *, now: bool) -> list[str]:
    """Return the ids of the workers that left. Raises NotFound, HeadraceError, Unavailable."""
    from shared.backend import Backend
    from shared.models.drain_orders import DrainOrders

    backend = Backend.open(settings)
    try:
        assert backend.server is not None
        found = [each.id for each in await backend.registry.workers() if worker_id in (None, each.id)]
        if worker_id is not None and not found:
            raise NotFound(f"no worker {worker_id!r} is running; see /health for their ids")
        await DrainOrders(backend.server).place(found, "now" if now else "finish")
        limit = MARGIN_S + (0 if now else settings.grace)
        if left := await _wait_until_gone(backend.registry.workers, found, limit):
            raise HeadraceError(f"still running after {limit:.0f} s: {', '.join(left)}")
        return found
    finally:
        await backend.close()


async def _wait_until_gone(
    workers: Callable[[], Awaitable[list[WorkerInfo]]], worker_ids: list[str], limit: float
) -> list[str]:
    """Wait until no worker of these ids runs, and return those that still do after `limit` seconds."""
    left = worker_ids
    for _ in range(int(limit / POLL_S)):
        running = {each.id for each in await workers()}
        left = [each for each in worker_ids if each in running]
        if not left:
            break
        await asyncio.sleep(POLL_S)
    return left
