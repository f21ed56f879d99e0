"""Runtime "native": Headrace's own engine, and the scripted engine without weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Thread

from shared.errors import ConfigError
from shared.models.model_store import SCRIPTED, ModelRepository
from shared.models.startup_progress import StartupProgress
from shared.runtime.gc_tuning import importing
from shared.settings import Settings
from workers.engine.interface import Generator
from workers.scripted_engine import DEFAULT_CONTEXT_TOKENS, ScriptedEngine


def load(settings: Settings, repository: ModelRepository, progress: StartupProgress) -> Generator:
    """Load the settings' model. Raises ConfigError if it cannot be used."""
    if settings.model == SCRIPTED:
        return ScriptedEngine(
            max_model_len=settings.max_model_len or DEFAULT_CONTEXT_TOKENS, max_num_seqs=settings.max_num_seqs
        )
    try:
        with progress.phase("imports"), importing():
            from workers.engine.config import EngineConfig  # noqa: PLC0415  torch is optional
            from workers.engine.encoder_engine import EncoderEngine  # noqa: PLC0415
            from workers.engine.engine import Engine  # noqa: PLC0415
            from workers.engine.kernels.select import build_ahead  # noqa: PLC0415
            from workers.engine.models.encoder_loader import is_encoder  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(f"the engine cannot be imported ({error}): install headrace[worker]") from error
    config = EngineConfig.from_settings(settings, Path())
    Thread(target=build_ahead, args=(config,), name="kernels", daemon=True).start()  # while the model is downloaded
    with progress.phase("model"):
        config = replace(config, model=repository.folder(progress))
    engine = EncoderEngine if is_encoder(config.model) else Engine
    return engine.load(config, progress)
