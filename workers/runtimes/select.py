"""The choice of a runtime by the setting `runtime`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from shared.models.model_store import ModelRepository
from shared.settings import Settings
from workers.engine.interface import Generator


def load_runtime(
    settings: Settings, repository: ModelRepository, set_progress: Callable[[float], None]
) -> Generator:
    """Load what executes the settings' model, with the progress from 0 to 1.

    Raises:
        ConfigError: the model or the runtime cannot be used; the message says what to do.
    """
    runtime = import_module(f"workers.runtimes.{settings.runtime}")  # each has dependencies of its own
    generator: Generator = runtime.load(settings, repository, set_progress)
    return generator
