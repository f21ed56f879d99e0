"""Execution of one scheduled batch. The runner owns the KV cache's tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import torch
from torch import Tensor

from shared.errors import ConfigError
from shared.models.startup_progress import StartupProgress
from workers.engine.cache_sizing import CacheSize
from workers.engine.config import EngineConfig
from workers.engine.execution.cuda_graphs import StepGraphs, graph_sizes
from workers.engine.execution.device import on_device
from workers.engine.execution.paged_attention import LayerCache, layer_caches, make_cache
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.kernels import Kernels
from workers.engine.kernels.cpp_kernels import CppKernels
from workers.engine.models.checkpoint import WeightReader
from workers.engine.models.decoder import Decoder, DecoderConfig, never
from workers.engine.models.loader import load_model
from workers.engine.models.shared_weights import load_shared
from workers.engine.scheduling.scheduled_batch import ScheduledBatch

if TYPE_CHECKING:  # adapters are off by default
    from workers.engine.lora.loader import AdapterLoader

_log = structlog.get_logger(__name__)


class Runner:
    """Computes the logits of scheduled batches.

    Attributes:
        device: of the logits.
        cache: memory of the KV cache; see `make_cache`.
        adapters: loads LoRA adapters of the model; None if it computes none.
    """

    device: torch.device
    cache: Tensor
    adapters: AdapterLoader | None = None

    @property
    def is_lost(self) -> bool:
        """True if another process that computes with this one has ended; `check` then raises EngineLost."""
        return False

    def check(self) -> None:
        """Raise EngineLost if the runner cannot compute any more."""

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Call `wake`, from another thread, when `is_lost` becomes true."""

    def run(self, batch: ScheduledBatch, interrupted: Callable[[], bool] | None = None) -> Tensor | None:
        """Compute one step.

        Returns:
            Logits [R, vocab] float32, valid until the next step: first the rows that sample, then those of drafted
            tokens, then the rows that score a prompt, each in the batch's order. None if `interrupted` returned
            true; it is called between layers, or once before a graph. The batch can then be run again: its block
            copies are done, and apart from them only the cache slots of its own tokens may have changed.
        """
        raise NotImplementedError


class ModelRunner(Runner):
    """A model and its paged KV cache on one device; see `Runner`.

    Args:
        graph_sizes: numbers of rows of the steps that are recorded as CUDA graphs, ascending. Larger steps, and all
            steps of a model that cannot be recorded, are launched kernel by kernel.
        adapters: loads the adapters of the model; steps that have some are never recorded.
    """

    def __init__(
        self,
        model: Decoder,
        size: CacheSize,
        *,
        max_num_seqs: int,
        graph_sizes: tuple[int, ...] = (),
        adapters: AdapterLoader | None = None,
    ) -> None:
        config = model.config
        recorded = graph_sizes if model.recordable else ()
        self._model = model
        self.adapters = adapters
        self._adapted = False  # whether rows of the step have adapters
        self.device = model.embedding.device
        self.cache = make_cache(
            config.num_layers,
            (size.num_blocks + bool(recorded), config.num_kv_heads, size.block_size, config.head_dim),
            model.embedding.dtype,
            self.device,
        )
        self._caches = layer_caches(self.cache)
        self._graphs: StepGraphs | None = None
        if recorded:
            self._graphs = self._record(recorded, size, max_num_seqs)

    @property
    def recorded(self) -> bool:
        """True if steps are replayed from CUDA graphs."""
        return self._graphs is not None

    def run(self, batch: ScheduledBatch, interrupted: Callable[[], bool] | None = None) -> Tensor | None:
        if self.adapters is not None:
            self._adapted = self._select_adapters(self.adapters, batch)
        return self.compute(batch.copies, StepInputs.from_batch(batch), interrupted)

    @torch.inference_mode()
    def compute(
        self, copies: Sequence[tuple[int, int]], step: StepInputs, interrupted: Callable[[], bool] | None = None
    ) -> Tensor | None:
        """Copy blocks, each from a source to a target, and compute a step given on the CPU; see `run`."""
        with on_device(self.device):
            for source, target in copies:
                for cache in self._caches:
                    cache.keys[target] = cache.keys[source]
                    cache.values[target] = cache.values[source]
            if self._graphs is not None and not self._adapted and len(step.tokens) <= self._graphs.max_rows:
                return None if interrupted and interrupted() else self._graphs.run(step)
            logits = self._model.forward(step.to(self.device), self._caches, interrupted or never)
            return None if logits is None else logits.float()

    def _select_adapters(self, adapters: AdapterLoader, batch: ScheduledBatch) -> bool:
        sequences = ((item.num_rows, item.sequence.adapter) for item in batch.items)
        return adapters.sites.select(sequences, self.device)

    @torch.inference_mode()
    def _record(self, sizes: tuple[int, ...], cache: CacheSize, max_num_seqs: int) -> StepGraphs | None:
        """Record the graphs. Return None if that fails, as it does for code that waits for the device."""
        try:
            with on_device(self.device):
                return StepGraphs(
                    partial(_compute, self._model, self._caches),
                    sizes,
                    max_num_seqs=max_num_seqs,
                    table_width=-(-cache.max_model_len // cache.block_size),
                    spare_block=cache.num_blocks,
                    vocab_size=self._model.config.vocab_size,
                    device=self.device,
                )
        except RuntimeError as error:  # torch's out-of-memory error is one too
            _log.warning("graphs_unavailable", reason=str(error), effect="small steps take several times longer")
            return None


def _compute(model: Decoder, caches: list[LayerCache], step: StepInputs) -> Tensor:
    logits = model.forward(step, caches, never)
    assert logits is not None  # nothing interrupts it
    return logits


def load_runner(
    config: EngineConfig,
    model_config: DecoderConfig,
    size: CacheSize,
    *,
    kernels: Kernels,
    dtype: torch.dtype,
    device: torch.device,
    progress: StartupProgress,
    make_reader: Callable[..., WeightReader] = WeightReader,
    make_runner: Callable[..., ModelRunner] = ModelRunner,
    part: str = "",
) -> ModelRunner:
    """Load a checkpoint's model, or a part of it, and make its cache.

    Args:
        make_reader, make_runner: have the parameters of `WeightReader` and `ModelRunner`.
        part: name of the part; empty for the whole model. A part is not recorded as CUDA graphs.

    Raises:
        ConfigError: the settings are not supported for this model on this device.
    """
    adapters = None if config.lora_dir is None else _adapter_loader(config, config.lora_dir, kernels, dtype, device)
    load = partial(
        load_model,
        config.model,
        model_config,
        dtype=dtype,
        device=device,
        max_model_len=size.max_model_len,
        progress=progress,
        make_reader=make_reader,
        sites=None if adapters is None else adapters.sites,
    )
    with progress.phase("weights"), on_device(device):
        model = _load_weights(load, config, kernels, part)
    with progress.phase("kv_cache"):
        sizes = () if part else graph_sizes(config.max_num_batched_tokens, invariant=config.batch_invariant)
        runner = make_runner(model, size, max_num_seqs=config.max_num_seqs, graph_sizes=sizes, adapters=adapters)
    if config.batch_invariant and device.type != "cpu" and not runner.recorded:
        raise ConfigError(f"batch_invariant is not supported for this model on {device}", param="batch_invariant")
    _log.info(
        "engine_loaded",
        device=str(device),
        dtype=str(dtype),
        blocks=size.num_blocks,
        max_model_len=size.max_model_len,
        full_length_sequences=round(size.full_sequences, 1),
    )
    return runner


def _load_weights(load: Callable[[Kernels], Decoder], config: EngineConfig, kernels: Kernels, part: str) -> Decoder:
    """Return the model, or a part of it, with weights that the machine's processes share if the settings say so."""
    if config.shared_weights and isinstance(kernels, CppKernels) and config.cache_dir is not None:
        return load_shared(load, kernels, config.model, config.cache_dir / "weights", part)
    return load(kernels)


def _adapter_loader(
    config: EngineConfig, folder: Path, kernels: Kernels, dtype: torch.dtype, device: torch.device
) -> AdapterLoader:
    """Return the loader of adapters for a model that is about to be loaded. Raises ConfigError.

    With CUDA graphs of one size, a step with adapters would compute the rows without them to other bits.
    """
    from workers.engine.lora.loader import AdapterLoader  # noqa: PLC0415  off by default

    if config.batch_invariant and device.type != "cpu":
        raise ConfigError("lora_dir is not supported together with batch_invariant on a GPU", param="lora_dir")
    if not folder.expanduser().is_dir():
        raise ConfigError(f"lora_dir must be a folder, and {folder} is not", param="lora_dir")
    return AdapterLoader(
        folder,
        kernels.exact_linear,
        kernels.add_products,
        dtype=dtype,
        device=device,
        max_rank=config.max_lora_rank,
    )
