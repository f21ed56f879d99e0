"""Interface of what serves one model of the repository in a worker process, and what all kinds of it share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from shared.errors import ConfigError, HeadraceError
from shared.models.worker_registry import Task
from shared.repository.spec import ModelSpec
from shared.repository.status import VersionStatistics
from workers.repository.plan import Plan
from workers.repository.serving.version_board import VersionBoard

MAX_REASON_CHARS = 1000

Result = TypeVar("Result")
log = structlog.get_logger(__name__)


class Serving(Protocol):
    """Versions of one model, behind one name. What it has loaded stays loaded if an update fails."""

    board: VersionBoard

    @property
    def spec(self) -> ModelSpec:
        """Return the description, with what the model's files say."""

    @property
    def task(self) -> Task | None:
        """Return the model's task; None before a version was loaded."""

    @property
    def serves(self) -> bool:
        """Return True if it has a version that is ready."""

    @property
    def holds_requests(self) -> bool: ...

    @property
    def used_at(self) -> float:
        """Return when it had a request last, by time.monotonic."""

    def fits(self, plan: Plan) -> bool:
        """Return False if another object must serve the plan."""

    async def update(self, plan: Plan) -> None:
        """Load the versions of a plan that are missing, and then unload others.

        Raises ConfigError if a version cannot be loaded.
        """

    async def stop(self, grace: float | None = None) -> None:
        """Finish the requests and unload all versions."""

    def statistics(self) -> Mapping[int, VersionStatistics]: ...


async def in_thread(function: Callable[[], Result]) -> Result:
    """Call a function that loads something in a thread of its own.

    Raises ConfigError with the reason if it fails, whatever the framework raises.
    """
    loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load")
    try:
        return await asyncio.get_running_loop().run_in_executor(loader, function)
    except HeadraceError as error:
        raise ConfigError(error.message, param=error.param) from error
    except Exception as error:
        log.exception("load_failed")
        raise ConfigError(f"{type(error).__name__}: {error}"[:MAX_REASON_CHARS]) from error
    finally:
        loader.shutdown(wait=False)


def load_error(error: HeadraceError, folder: Path) -> ConfigError:
    """Return the error of a load for callers, who must not learn where the repository lies.

    Args:
        folder: the model's folder.
    """
    kind = type(error) if isinstance(error, ConfigError) else ConfigError
    message = error.message
    for root in (folder.absolute().parent, folder.resolve().parent):
        message = message.replace(f"{root}/", "")
    return kind(message, param=error.param)
