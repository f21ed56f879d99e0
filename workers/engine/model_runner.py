"""Runs the model over one scheduled batch. It owns the KV cache's tensors and knows nothing of block
ownership or sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import structlog
import torch
from torch import Tensor

from workers.engine.cache_sizing import CacheSize
from workers.engine.execution.cuda_graphs import StepGraphs
from workers.engine.execution.device import on
from workers.engine.execution.paged_attention import LayerCache, make_layer_caches
from workers.engine.execution.step_inputs import StepInputs
from workers.engine.models.decoder import Decoder, never
from workers.engine.scheduling.scheduler import ScheduledBatch

_log = structlog.get_logger(__name__)


class ModelRunner:
    """A model and its paged KV cache on one device.

    Args:
        graph_sizes: rows of the steps that are recorded as CUDA graphs, rising; larger steps are launched kernel by
            kernel, and so are all of a model that cannot be recorded.
    """

    def __init__(
        self, model: Decoder, size: CacheSize, *, max_num_seqs: int, graph_sizes: tuple[int, ...] = ()
    ) -> None:
        config = model.config
        recorded = graph_sizes if model.recordable else ()
        self._model = model
        self._device = model.embedding.device
        self._caches = make_layer_caches(
            config.num_layers,
            (size.num_blocks + bool(recorded), config.num_kv_heads, size.block_size, config.head_dim),
            model.embedding.dtype,
            self._device,
        )
        self._graphs: StepGraphs | None = None
        if recorded:
            self._graphs = self._record(recorded, size, max_num_seqs)

    @property
    def recorded(self) -> bool:
        """Whether steps are played from graphs."""
        return self._graphs is not None

    @torch.inference_mode()
    def run(self, batch: ScheduledBatch, interrupted: Callable[[], bool] | None = None) -> Tensor | None:
        """Logits [R, vocab] float32 of the rows that sample, then of those that score, in the batch's order; valid
        until the next step.

        None where `interrupted`, which is asked between layers, or once before a graph, ended the step: the batch's
        copies are done, and besides only cache slots of tokens that were to be computed may have changed, so that
        it can be run again.
        """
        with on(self._device):
            for source, target in batch.copies:
                for cache in self._caches:
                    cache.keys[target] = cache.keys[source]
                    cache.values[target] = cache.values[source]
            step = StepInputs.of(batch)
            if self._graphs is not None and len(step.tokens) <= self._graphs.max_rows:
                return None if interrupted and interrupted() else self._graphs.run(step)
            logits = self._model.forward(step.to(self._device), self._caches, interrupted or never)
            return None if logits is None else logits.float()

    @torch.inference_mode()
    def _record(self, sizes: tuple[int, ...], cache: CacheSize, max_num_seqs: int) -> StepGraphs | None:
        """None where it fails: somebody else's code may wait for the device."""
        try:
            with on(self._device):
                return StepGraphs(
                    partial(_compute, self._model, self._caches),
                    sizes,
                    max_num_seqs=max_num_seqs,
                    table_width=-(-cache.max_model_len // cache.block_size),
                    spare_block=cache.num_blocks,
                    vocab_size=self._model.config.vocab_size,
                    device=self._device,
                )
        except RuntimeError as error:  # torch's, out-of-memory among them
            _log.warning("graphs_unavailable", reason=str(error), effect="small steps take several times as long")
            return None


def _compute(model: Decoder, caches: list[LayerCache], step: StepInputs) -> Tensor:
    logits = model.forward(step, caches, never)
    assert logits is not None  # nothing interrupts it
    return logits
