"""Calibration of a model: once for each checkpoint, and kept in the cache."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.runtime.shared_cache import make_once
from workers.engine.calibration.formats import CalibratedIntegers, Calibration
from workers.engine.config import EngineConfig
from workers.engine.execution.paged_attention import make_layer_caches
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.kernels import Kernels
from workers.engine.kernels.select import choose_kernels
from workers.engine.models.decoder import DecoderConfig
from workers.engine.models.fingerprint import hash_weights, kernels_identity
from workers.engine.models.loader import load_model
from workers.engine.quantization.grouped_weight import GroupedWeight
from workers.engine.quantization.int4 import GROUP
from workers.engine.text.tokenizer import Tokenizer

TEXT = Path(__file__).parent / "text.txt"
SOURCES = ("calibration", "models", "quantization")  # packages of the engine that the integers depend on
WINDOW_TOKENS = 512
MAX_TOKENS = 8192
BLOCK_SIZE = 16

_CPU = torch.device("cpu")
_log = structlog.get_logger(__name__)


def rounded_weights(config: EngineConfig, model_config: DecoderConfig, tokenizer: Tokenizer) -> CalibratedIntegers:
    """Return the format with the rounded weights of a model, which is calibrated unless the cache has them.

    The kernels of the CPU compute the calibration, so that the integers are the same on any device.
    """
    plain = choose_kernels(replace(config, quantization="none", device="cpu"), _CPU, torch.float32)
    identity = _identity(plain)
    calibrate = partial(_calibrate, plain, config.model, model_config, tokenizer)
    if config.cache_dir is None:
        return CalibratedIntegers(calibrate(), identity)
    return CalibratedIntegers(_kept(config.model, config.cache_dir, identity, calibrate), identity)


def _identity(kernels: Kernels) -> str:
    """Return a string that is equal for equal kernels, texts and sources, which say what is rounded and how."""
    digest = hashlib.sha256(kernels_identity(kernels).encode())
    engine = TEXT.parent.parent
    sources = [path for folder in SOURCES for path in sorted((engine / folder).rglob("*.py"))]
    for path in [TEXT, *sources]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _kept(
    checkpoint: Path, cache: Path, identity: str, calibrate: Callable[[], list[GroupedWeight]]
) -> list[GroupedWeight]:
    """Return the weights from the cache, into which they are written if it lacks them."""
    name = hash_weights(checkpoint, cache)[:32]
    target = cache / "int4" / f"{name}.{identity}.safetensors"
    try:
        make_once(target, lambda work: _write(work / "weights", calibrate()))
        for path in target.parent.glob(f"{name}.*.safetensors"):  # of other versions of Headrace
            if path != target:
                path.unlink(missing_ok=True)
        return _read(target)
    except OSError as error:
        _log.warning("int4_not_cached", reason=error.strerror, effect="the weights are rounded at each start")
        return calibrate()


def _calibrate(
    kernels: Kernels, checkpoint: Path, model_config: DecoderConfig, tokenizer: Tokenizer
) -> list[GroupedWeight]:
    """Return the rounded weights of a model in the order in which it is loaded."""
    began = time.monotonic()
    calibration = Calibration()
    step = _step(tokenizer.encode(TEXT.read_text(encoding="utf-8")), model_config.length_limit())
    model = load_model(
        checkpoint,
        model_config,
        kernels.with_quantization(calibration),
        dtype=torch.float32,
        device=_CPU,
        max_model_len=model_config.length_limit(),
        progress=lambda share: None,
    )
    shape = (step.block_tables.numel(), model_config.num_kv_heads, BLOCK_SIZE, model_config.head_dim)
    for layer in calibration.layers:
        layer.begin()
    with torch.inference_mode():
        model.forward(step, make_layer_caches(model_config.num_layers, shape, torch.float32, _CPU))
    rounded = [layer.rounded() for layer in calibration.layers]
    _log.info("int4_calibrated", tokens=len(step.tokens), seconds=round(time.monotonic() - began, 1))
    return rounded


def _step(tokens: list[int], longest: int) -> StepInputs:
    """Return the inputs of windows of the tokens, each a sequence."""
    tokens = tokens[:MAX_TOKENS]
    length = min(WINDOW_TOKENS, longest, len(tokens))
    count = len(tokens) // length
    blocks = -(-length // BLOCK_SIZE)
    return StepInputs(
        tokens=torch.tensor(tokens[: count * length]),
        positions=torch.arange(length).repeat(count),
        sequences=torch.arange(count).repeat_interleave(length),
        block_tables=torch.arange(count * blocks).view(count, blocks),
        sample_rows=torch.tensor([count * length - 1]),
    )


def _write(path: Path, weights: Sequence[GroupedWeight]) -> Path:
    tensors: dict[str, Tensor] = {}
    for number, weight in enumerate(weights):
        pairs = weight.codes.view(weight.outputs, -1, 2)
        packed = {"codes": pairs[..., 0] | pairs[..., 1] << 4, "inputs": torch.tensor(weight.inputs)}
        packed |= {name: getattr(weight, name) for name in ("scales", "zeros", "factors")}
        tensors |= {f"{number}.{name}": tensor for name, tensor in packed.items()}
    save_file(tensors, path)
    return path


def _read(path: Path) -> list[GroupedWeight]:
    tensors, found = load_file(path), []
    for number in range(len(tensors) // 5):
        packed, inputs, scales, zeros, factors = (
            tensors[f"{number}.{name}"] for name in ("codes", "inputs", "scales", "zeros", "factors")
        )
        codes = torch.stack([packed & 15, packed >> 4], -1).flatten(1)
        found.append(GroupedWeight(4, GROUP, codes, scales, zeros, factors, int(inputs), narrow=True))
    return found
