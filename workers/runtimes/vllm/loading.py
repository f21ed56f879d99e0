"""Check of vLLM's installation before anything of it is used."""

from __future__ import annotations

import os

from shared.errors import ConfigError
from shared.models.model_store import ModelRepository, is_gguf
from shared.models.startup_progress import StartupProgress
from shared.settings import Settings
from workers.engine.interface import Generator
from workers.runtimes.vllm.engine_arguments import DEFAULT_ENVIRONMENT, environment

SUPPORTED = "0.32"  # whose internals are known


def load(settings: Settings, repository: ModelRepository, progress: StartupProgress) -> Generator:
    """Load the settings' model. Raises ConfigError if it cannot be used."""
    if is_gguf(settings.model):
        raise ConfigError(
            f"vLLM {SUPPORTED} does not read GGUF files, which {settings.model} is or holds: set runtime = native",
            param="runtime",
        )
    for name, value in DEFAULT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.update(environment(settings))
    try:
        import vllm  # noqa: PLC0415  optional
    except ImportError as error:
        raise ConfigError(
            f"runtime = vllm needs vLLM, which cannot be imported ({error}): install headrace[vllm], install "
            "headrace into the environment of vLLM, or set runtime = native",
            param="runtime",
        ) from error
    if not vllm.__version__.startswith(f"{SUPPORTED}."):
        raise ConfigError(
            f"runtime = vllm supports vLLM {SUPPORTED}, but {vllm.__version__} is installed", param="runtime"
        )
    from workers.runtimes.vllm.start import start  # noqa: PLC0415  imports vLLM

    return start(settings, repository.folder(progress))
