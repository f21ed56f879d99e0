"""Start of vLLM's engine with one model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import vllm
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.v1.engine.llm_engine import LLMEngine

from shared.errors import ConfigError
from shared.settings import Settings
from workers.engine.config import EngineConfig
from workers.engine.models.decoder import parse_token_ids
from workers.engine.models.encoder_loader import is_encoder
from workers.engine.models.fingerprint import describe_computation, hash_weights
from workers.engine.models.loader import read_eos_token_ids
from workers.engine.text.tokenizer import Tokenizer
from workers.runtimes.vllm.engine import VllmEngine
from workers.runtimes.vllm.engine_arguments import engine_arguments, has_native_sampling, identity
from workers.runtimes.vllm.llm_engine import LLMEngineExecutor
from workers.runtimes.vllm.token_chooser import TokenChooser


def start(settings: Settings, folder: Path) -> VllmEngine:
    """Load the model in `folder`. Raises ConfigError if it or the settings cannot be used."""
    if is_encoder(folder):
        raise ConfigError("runtime = vllm serves generating models only: set runtime = native", param="model")
    known = {field.name for field in dataclasses.fields(EngineArgs)}
    arguments = engine_arguments(settings, folder, current_platform.device_type, known)
    native_sampling = has_native_sampling(arguments)
    config = EngineConfig.from_settings(settings, folder)
    tokenizer = Tokenizer(folder, **config.tokenizer_options())
    _keep_threads()
    engine = _start_engine(arguments, native_sampling=native_sampling)
    executor = LLMEngineExecutor(engine)
    eos = read_eos_token_ids(folder, parse_token_ids(executor.configured_eos))
    if tokenizer.eos_token_id is not None:
        eos |= {tokenizer.eos_token_id}
    parts = {"vllm": vllm.__version__, "arguments": identity(arguments), "watermark": config.watermark.identity}
    weights = hash_weights(folder, config.cache_dir)
    return VllmEngine(
        executor,
        tokenizer,
        eos,
        computation=describe_computation(weights, torch.device(executor.device_type), **parts),
        max_num_seqs=settings.max_num_seqs,
        native_sampling=native_sampling,
        watermark=config.watermark,
    )


def _keep_threads() -> None:
    """Let vLLM compute on all cores of a machine without an accelerator.

    With OMP_NUM_THREADS unset, vLLM serves with one thread of torch. It sets the variable for processes of its own
    that compute, but here its engine computes in this process.
    """
    if current_platform.device_type == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))


def _start_engine(arguments: Mapping[str, Any], *, native_sampling: bool) -> LLMEngine:
    processors = [*([TokenChooser] if native_sampling else []), *arguments.get("logits_processors", ())]
    try:
        return LLMEngine.from_engine_args(EngineArgs(**{**arguments, "logits_processors": processors or None}))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"vLLM refuses these settings: {error}", param="vllm_options") from error
