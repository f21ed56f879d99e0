"""The choice of a runtime by the setting `runtime`."""

from __future__ import annotations

from importlib import import_module

from shared.models.model_store import ModelRepository
from shared.models.startup_progress import StartupProgress
from shared.settings import Settings
from workers.engine.interface import Generator


def load_runtime(settings: Settings, repository: ModelRepository, progress: StartupProgress) -> Generator:
    """Load what executes the settings' model; each runtime reports its progress from 0 to 1.

    Raises:
        ConfigError: the model or the runtime cannot be used; the message says what to do.
    """
    runtime = import_module(f"workers.runtimes.{settings.runtime}")  # each has dependencies of its own
    generator: Generator = runtime.load(settings, repository, progress)
    return generator
