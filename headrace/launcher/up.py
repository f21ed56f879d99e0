"""`headrace up`: run the queue, the API and the workers on this machine as separate processes, until Ctrl-C.

The children receive their settings in environment variables.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
from pydantic import SecretStr
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from headrace.client import HeadraceClient
from headrace.launcher.answer_printer import AnswerPrinter
from headrace.launcher.pulse import Pulse
from headrace.launcher.server_keeper import ServerKeeper
from headrace.launcher.supervisor import Child, Death, Supervisor
from producer_api.batch_runner.broker import broker_url
from shared.backend import Backend
from shared.errors import ConfigError, Unavailable
from shared.models.model_store import SCRIPTED, ModelRepository, embedding_settings
from shared.models.upstream import with_upstream_model
from shared.models.worker_registry import WorkerExit, remove_process
from shared.redis.embedded import EmbeddedServer
from shared.runtime.bind_safety import check_exposure
from shared.runtime.sockets import free_port, place_of, reserve_port, url_of
from shared.settings import NO_MODEL, Settings, to_environment

CHECK_INTERVAL_S = 0.1
READY_TIMEOUT_S = 900.0  # a first start may download and convert a model
STOP_MARGIN_S = 5.0  # in addition to the grace time of the children

log = structlog.get_logger(__name__)


class Stopped(Exception):
    """SIGINT or SIGTERM was received."""


class Up:
    """One run of the launcher.

    Args:
        settings: used by all processes.
        own_server: start the embedded Valkey; otherwise use `settings.redis_url`.
        verbose: let the children write to the terminal instead of log files.
        console: where messages are printed (stderr).
    """

    def __init__(self, settings: Settings, *, own_server: bool, verbose: bool, console: Console) -> None:
        self._settings = settings = self._with_model_name(settings, console)
        self._console = console
        self._verbose = verbose
        self._model = None if settings.model == NO_MODEL else ModelRepository(settings)
        embeds = settings.embedding_model is not None
        self._embedding = ModelRepository(embedding_settings(settings)) if embeds else None
        self._server = (
            EmbeddedServer(settings.data_dir / "valkey", appendfsync=settings.appendfsync) if own_server else None
        )
        self._keeper: ServerKeeper | None = None
        self._supervisor = Supervisor(self._print, self._on_death)
        self._served_models: dict[str, str | None] = {}  # by the name of the worker process; None for a repository
        self._signal_count = 0
        self.port = settings.port
        self._admin_port = settings.admin_port or 0
        self._grpc_port = settings.grpc_port
        self._reserved: list[socket.socket] = []

    @staticmethod
    def _with_model_name(settings: Settings, console: Console) -> Settings:
        """Ask an upstream server for the name of its model, if no setting names it. Raises ConfigError."""

        def report(reason: str) -> None:
            console.print(f"{reason}; waiting for it", soft_wrap=True, highlight=False, markup=False)

        with console.status(f"asking the upstream server at {settings.upstream_url} for its model"):
            return with_upstream_model(settings, report)

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self._settings.host in ("0.0.0.0", "::") else self._settings.host
        return url_of(host, self.port)

    def run(self, question: str | None = None) -> None:
        """Start all processes and run until a signal; with a `question`, until it is answered.

        Raises HeadraceError if a process cannot be started, or dies repeatedly before all have been ready once.
        """
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signal_number, self._on_signal)
        try:
            self._start()
            self._await_ready()
            self._supervisor.settle()
            if question is None:
                self._welcome()
                while True:
                    self._check()
            self._print_answer(question)
        except Stopped:
            self._print("stopping")
        finally:
            self._stop()

    def _on_signal(self, signal_number: int, frame: FrameType | None) -> None:
        self._signal_count += 1
        if self._signal_count == 1:
            raise Stopped

    def _start(self) -> None:
        check_exposure(self._settings)
        self._check_min_workers()
        self.port = self._claim(self._settings.host, self.port, "port")
        self._admin_port = self._claim(self._settings.admin_host, self._admin_port, "admin_port")
        if self._grpc_port is not None:
            self._grpc_port = self._claim(self._settings.host, self._grpc_port, "grpc_port")
        if self._server is not None:
            self._server.start()
            self._keeper = ServerKeeper(self._server, self._print)
        settings = self._child_settings()
        self._spawn("api", settings)
        self._start_workers(settings)
        self._start_tasks(settings)
        if self._model is not None and self._settings.runtime != "upstream" and self._settings.model != SCRIPTED:
            self._set_up_model(self._model)  # after the workers, which build their kernels meanwhile
        if self._embedding is not None:
            self._set_up_model(self._embedding)

    def _start_workers(self, settings: Settings) -> None:
        """Start the workers of the model, of the embedding model, and of the repository."""
        alone = settings.model_copy(update={"model_repository": None})
        if self._model is not None:
            for number in range(1, settings.workers + 1):
                self._spawn("worker", alone, f"-{number}")
        if self._embedding is not None:
            embedding = embedding_settings(alone).model_copy(update={"metrics_port": None})
            self._spawn("worker", embedding, "-embedding")
        if settings.model_repository is not None:
            port = settings.metrics_port and settings.metrics_port + (self._model is not None)
            repository = settings.model_copy(update={"embedding_model": None, "metrics_port": port})
            self._spawn("worker", repository, "-repository")

    def _claim(self, host: str, port: int, setting: str) -> int:
        """Reserve a port until the end, as its server starts later and may be restarted. Raises ConfigError."""
        if port in [each.getsockname()[1] for each in self._reserved]:
            raise ConfigError(f"{setting} {port} is the port of another server too; choose another", param=setting)
        self._reserved.append(claim_port(host, port, setting))
        claimed: int = self._reserved[-1].getsockname()[1]
        return claimed

    def _check_min_workers(self) -> None:
        """Raise ConfigError if too few workers are started; other machines cannot reach the embedded Valkey."""
        needed, started = self._settings.min_workers, self._settings.workers
        if self._server is not None and needed > started:
            raise ConfigError(f"min_workers must be at most workers, {started}, got {needed}", param="min_workers")

    def _set_up_model(self, model: ModelRepository) -> None:
        with self._console.status(f"setting up the model {model.served_name} (once)"):
            model.folder()

    def _start_tasks(self, settings: Settings) -> None:
        """Start the tasks process if Celery is installed and can use this Redis."""
        try:
            if self._server is None:
                broker_url(self._settings)
            if find_spec("celery") is None:
                raise ConfigError("Celery is not installed: install headrace[tasks]")
        except ConfigError as error:
            self._print(f"batches are not available: {error.message}")
        else:
            self._spawn("tasks", settings)

    def _child_settings(self) -> Settings:
        """Return the settings of the children, with the ports and threads that this launcher chose."""
        threads, workers = self._settings.threads, self._settings.workers * (self._model is not None)
        workers += (self._embedding is not None) + (self._settings.model_repository is not None)
        if threads is None and workers > 1:
            threads = max(1, (os.cpu_count() or 1) // workers)
        chosen: dict[str, Any] = {
            "port": self.port,
            "admin_port": self._admin_port,
            "grpc_port": self._grpc_port,
            "threads": threads,
        }
        if self._server is not None:
            chosen["redis_url"] = SecretStr(self._server.local_url)
        return self._settings.model_copy(update=chosen)

    def _spawn(self, role: str, settings: Settings, suffix: str = "") -> None:
        log = None if self._verbose else self._log_folder() / f"{role}{suffix}.log"
        # No settings file: this process has read it, and the child's environment holds every setting.
        python = settings.worker_python if role == "worker" else None
        command = [python or sys.executable, "-m", "headrace", role, "--config", os.devnull]
        pulse = None
        if role == "worker":
            alone = settings.model_repository is None
            self._served_models[f"{role}{suffix}"] = ModelRepository(settings).served_name if alone else None
            pulse = Pulse(settings.step_timeout) if settings.step_timeout else None
        self._supervisor.add(Child(f"{role}{suffix}", command, to_environment(settings), log, pulse))

    def _check(self) -> None:
        if self._signal_count:  # Stopped may have been raised inside a library that caught it
            raise Stopped
        if self._keeper is not None:
            self._keeper.check()
        self._supervisor.check()
        time.sleep(CHECK_INTERVAL_S)

    def _on_death(self, death: Death) -> None:
        if death.child.name in self._served_models:
            asyncio.run(record_exit(self._child_settings(), self._served_models[death.child.name], death))

    def _await_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        with HeadraceClient(self.url) as client, self._console.status("starting") as status:
            while time.monotonic() < deadline:
                self._check()
                try:
                    found = client.ready()
                except Unavailable:
                    continue
                if found["ready"]:
                    return
                status.update(found["reason"])
        raise Unavailable(f"{self._name} was not ready within {READY_TIMEOUT_S:.0f} s: see {self._log_folder()}")

    @property
    def _name(self) -> str:
        """Return the name of the default model, or the folder of the repository."""
        return str(self._settings.model_repository) if self._model is None else self._model.served_name

    def _metrics(self) -> str:
        return f"{url_of(self._settings.admin_host, self._admin_port)}/metrics"

    def _log_folder(self) -> Path:
        return self._settings.data_dir / "logs"

    def _print_answer(self, question: str) -> None:
        """Print the answer on stdout, and supervise the processes meanwhile."""
        printer = AnswerPrinter(self.url, self._name, question)
        printer.start()
        while printer.is_alive():
            self._check()
        if printer.failure is not None:
            raise printer.failure

    def _welcome(self) -> None:
        model = self._name
        body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello!"}]})
        key = "-H 'authorization: Bearer YOUR_KEY' " if self._settings.auth else ""
        curl = f"curl -N {self.url}/v1/chat/completions {key}-H 'content-type: application/json' -d '{body}'"
        curl = curl if self._model is not None else f"curl {key}{self.url}/v1/models"
        chat = f"headrace chat --url {self.url}"
        grpc = "" if self._grpc_port is None else place_of(self._settings.host, self._grpc_port)
        upstream = self._upstream()
        if self._console.is_terminal:
            text = Text.assemble(
                ("Playground  ", "bold"), (f"{self.url}/", "cyan"), "\n",
                ("OpenAI API  ", "bold"), (f"{self.url}/v1", "cyan"), f"   model {model}\n",
                *((("Upstream    ", "bold"), (upstream, "cyan"), "\n") if upstream else ()),
                *((("gRPC        ", "bold"), (grpc, "cyan"), "\n") if grpc else ()),
                ("Terminal    ", "bold"), (chat, "cyan"), "\n",
                ("Metrics     ", "bold"), (self._metrics(), "cyan"), "\n",
                ("Logs        ", "bold"), f"{self._log_folder()}\n",
                ("Keys        ", "bold"), self._authentication(),
            )  # fmt: skip
            self._console.print(Panel(text, title="Headrace is ready", expand=False, border_style="green"))
            self._console.print("Try it:", style="bold")
            self._console.print(curl, soft_wrap=True, highlight=False, markup=False)
            self._console.print("\nCtrl-C stops everything.", style="dim")
        else:
            for line in (
                f"ready: {self.url}/  model {model}",
                *([f"upstream: {upstream}"] if upstream else []),
                *([f"grpc: {grpc}"] if grpc else []),
                f"metrics: {self._metrics()}",
                f"keys: {self._authentication()}",
                curl,
            ):
                self._print(line)

    def _upstream(self) -> str:
        """Describe the server that executes the model, "" for a runtime of this machine."""
        if self._settings.runtime != "upstream":
            return ""
        return f"{self._settings.upstream_url}   model {self._settings.upstream_model}"

    def _authentication(self) -> str:
        """Describe in a sentence who may use the API."""
        if self._settings.auth:
            return "authentication is on; create a key with `headrace keys create`"
        if self._settings.insecure:
            return "authentication is off, and other machines may connect: insecure is set"
        return "authentication is off; the server listens on loopback only"

    def _stop(self) -> None:
        """Stop all processes. A signal that arrives meanwhile has them killed at once, as a second one does."""
        self._signal_count = max(self._signal_count, 1)
        self._supervisor.stop(self._settings.grace + STOP_MARGIN_S, lambda: self._signal_count > 1)
        if self._server is not None:
            self._server.stop()
        for holder in self._reserved:
            holder.close()

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)


async def record_exit(settings: Settings, model: str | None, death: Death) -> None:
    """Record a worker's death, which /ready reports, and remove it from the list of workers.

    `model` is None for the worker of a repository, of whose models /ready reports the states.

    Without Redis, /ready reports that Redis is away.
    """
    backend = Backend.open(settings)
    try:
        at = await backend.token_log.now()
        exit_ = WorkerExit(status=death.status, at=at, restart_at=at + death.pause)
        if model is not None:
            await backend.registry.note_exit(model, exit_)
        await remove_process(backend.registry, death.pid)
    except Unavailable as error:
        log.warning("exit_not_recorded", error=error.message)
    finally:
        await backend.close()


def claim_port(host: str, port: int, setting: str = "port") -> socket.socket:
    """Return the reservation of `port`, or of a free port for 0. Raises ConfigError."""
    try:
        return reserve_port(host, port or free_port(host))
    except OSError as error:
        raise ConfigError(
            f"{setting} {port} on {host} cannot be used ({error.strerror}): stop what uses it, or choose another",
            param=setting,
        ) from None
