"""Runs the model over one scheduled batch. It owns the KV cache's tensors and knows nothing of block
ownership or sampling.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workers.engine.attention import make_layer_caches
from workers.engine.models.decoder import Decoder, never
from workers.engine.scheduler import ScheduledBatch
from workers.engine.step_inputs import StepInputs


class ModelRunner:
    """A model and its paged KV cache on one device."""

    def __init__(self, model: Decoder, num_blocks: int, block_size: int) -> None:
        config = model.config
        self._model = model
        self._device = model.embedding.device
        self._caches = make_layer_caches(
            config.num_layers,
            (num_blocks, config.num_kv_heads, block_size, config.head_dim),
            model.embedding.dtype,
            self._device,
        )

    @torch.inference_mode()
    def run(self, batch: ScheduledBatch, interrupted: Callable[[], bool] | None = None) -> Tensor | None:
        """Logits [R, vocab] float32 of the rows that sample, then of those that score, in the batch's order.

        None where `interrupted`, which is asked between layers, ended the step: the batch's copies are done, and
        besides only cache slots of tokens that were to be computed may have changed, so that it can be run again.
        """
        for source, target in batch.copies:
            for cache in self._caches:
                cache.keys[target] = cache.keys[source]
                cache.values[target] = cache.values[source]
        logits = self._model.forward(StepInputs.of(batch, self._device), self._caches, interrupted or never)
        return None if logits is None else logits.float()
