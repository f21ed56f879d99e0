"""Drafter that runs a small model with the same vocabulary.

It draws with the random numbers of the answer itself, so that it is as often right in sampled answers as the two
models' probabilities are close.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

import torch

from shared.errors import ConfigError
from shared.models.startup_progress import StartupProgress
from workers.engine.cache.block_pool import BlockPool
from workers.engine.cache.kv_cache import KVCacheManager
from workers.engine.cache_sizing import CacheSize, size_cache
from workers.engine.calibration.select import with_calibrated_weights
from workers.engine.config import EngineConfig
from workers.engine.kernels.select import choose_kernels
from workers.engine.model_runner import ModelRunner, load_runner
from workers.engine.models.loader import read_model_config
from workers.engine.sampling.sampler import sample
from workers.engine.scheduling.scheduled_batch import ScheduledBatch, ScheduledSequence
from workers.engine.sequence import Sequence
from workers.engine.speculation.interface import Draft
from workers.engine.text.tokenizer import Tokenizer

CACHE_SHARE = 0.25  # of `kv_cache_gib`, in addition to the model's own cache
PARAM = "draft_model"


@dataclass
class Shadow:
    """One answer in the small model: `num_shared` tokens of the answer, then the last draft."""

    sequence: Sequence
    num_shared: int

    def follow(self, answer: Sequence) -> None:
        """Replace the wrong tokens of the last draft by those that came, and leave the last one to compute."""
        tokens, same = self.sequence.tokens, self.num_shared
        while same < min(len(tokens), answer.num_tokens) and tokens[same] == answer.tokens[same]:
            same += 1
        tokens[same:] = answer.tokens[same:]
        computed = self.sequence.num_computed_tokens
        self.sequence.num_computed_tokens = min(computed, same, answer.num_tokens - 1)
        self.num_shared = answer.num_tokens


class DraftModel:
    """Drafter by a small model; see `Drafter`.

    It has a KV cache of its own. When that is full, the answers that drafted least recently are computed again.
    """

    name = "model"

    def __init__(self, runner: ModelRunner, size: CacheSize, budget: int) -> None:
        self._runner = runner
        self._cache = KVCacheManager(BlockPool(size.num_blocks), size.block_size)
        self._max_model_len = size.max_model_len
        self._budget = budget  # tokens of one step
        self._shadows: OrderedDict[Sequence, Shadow] = OrderedDict()

    @property
    def blocks_used(self) -> int:
        return self._cache.pool.num_blocks - self._cache.pool.num_free

    def propose(self, sequence: Sequence, most: int) -> Draft | None:
        shadow = self._shadows.get(sequence)
        if shadow is None:
            shadow = self._shadows[sequence] = Shadow(_copy(sequence), sequence.num_tokens)
        self._shadows.move_to_end(sequence)
        shadow.follow(sequence)
        copy, end = shadow.sequence, min(sequence.num_tokens + most, self._max_model_len)
        while copy.num_tokens < end:
            token = self._next(copy)
            if token is None:
                break
            copy.tokens.append(token)
        drafted = tuple(copy.tokens[sequence.num_tokens :])
        return Draft(self.name, drafted) if drafted else None

    def remember(self, sequence: Sequence) -> None:
        """Free the cache of an answer that is complete."""
        shadow = self._shadows.pop(sequence, None)
        if shadow is not None:
            self._cache.free(shadow.sequence)

    def _next(self, copy: Sequence) -> int | None:
        """Compute the tokens that are not in the cache, and draw the next one. None without room for them."""
        while not self._cache.allocate(copy, copy.num_tokens):
            oldest = next(iter(self._shadows))
            if self._shadows[oldest].sequence is copy:
                return None
            self.remember(oldest)
        while True:
            count = min(self._budget, copy.num_uncomputed_tokens)
            item = ScheduledSequence(copy, count, count == copy.num_uncomputed_tokens)
            logits = self._runner.run(ScheduledBatch([item], []))
            self._cache.advance(copy, item.num_new_tokens)
            if not copy.num_uncomputed_tokens:
                assert logits is not None  # nothing interrupts it
                return sample(logits, [copy])[0]


def _copy(sequence: Sequence) -> Sequence:
    """Return a sequence with the same tokens, parameters and random numbers, and nothing computed."""
    return Sequence(
        job_id=sequence.job_id,
        choice=sequence.choice,
        arrival=sequence.arrival,
        params=sequence.params,
        tokens=list(sequence.tokens),
        num_prompt_tokens=sequence.num_prompt_tokens,
        max_tokens=sequence.max_tokens,
        eos_token_ids=sequence.eos_token_ids,
        text=sequence.text,
    )


def load_draft_model(
    config: EngineConfig, tokenizer: Tokenizer, vocab_size: int, dtype: torch.dtype, device: torch.device
) -> DraftModel | None:
    """Load the model of the setting `draft_model`, if it is set.

    Raises ConfigError if it cannot be loaded, or has another vocabulary than the engine's model.
    """
    folder = config.draft_model
    if folder is None:
        return None
    if device.type != "cpu":
        raise ConfigError(f"{PARAM} is supported on the CPU only, not on {device}", param=PARAM)
    small = replace(
        config,
        model=folder,
        max_model_len=None,
        num_kv_blocks=None,
        kv_cache_gib=config.kv_cache_gib * CACHE_SHARE,
        tensor_parallel_size=1,
    )
    try:
        model_config = read_model_config(folder)
        own = Tokenizer(folder, **config.tokenizer_options())
        if own.hf.get_vocab() != tokenizer.hf.get_vocab() or model_config.vocab_size > vocab_size:
            raise ConfigError("it must have the vocabulary of the model that it drafts for")
        size = size_cache(small, model_config, dtype, device)
        kernels = with_calibrated_weights(choose_kernels(small, device, dtype), small, model_config, own)
        progress = StartupProgress()
        runner = load_runner(
            small, model_config, size, kernels=kernels, dtype=dtype, device=device, progress=progress
        )
    except ConfigError as error:
        raise ConfigError(f"{PARAM} {folder} cannot be used: {error.message}", param=PARAM) from error
    return DraftModel(runner, size, config.max_num_batched_tokens)
