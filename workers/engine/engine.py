"""Continuous-batching engine: it takes requests and returns tokens, one step at a time.

Single-threaded and synchronous; only the tokenizer may be used from other threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import structlog
import torch
from torch import Tensor

from shared.errors import EngineFailed, HeadraceError, InvalidRequest
from shared.models.startup_progress import StartupProgress
from shared.models.worker_registry import Task
from workers.engine.cache.block_pool import BlockPool
from workers.engine.cache.kv_cache import KVCacheManager
from workers.engine.cache.prefix_cache import PrefixCache
from workers.engine.calibration.select import with_calibrated_weights
from workers.engine.config import EngineConfig, checkpoint_dtype
from workers.engine.echo import Echo
from workers.engine.execution.gpu_memory import GpuMemory
from workers.engine.grammar.support import load_grammar_support
from workers.engine.interface import EngineLost, EngineOutput, EngineRequest
from workers.engine.kernels.select import choose_kernels
from workers.engine.model_runner import Runner
from workers.engine.models.fingerprint import describe_computation, fingerprint, hash_weights, kernels_identity
from workers.engine.models.loader import read_ahead, read_eos_token_ids, read_model_config
from workers.engine.models.registry import ARCHITECTURES
from workers.engine.parallel.loading import begin_loading
from workers.engine.request_check import check_request
from workers.engine.sampling.prompt_logprobs import record_prompt_logprobs
from workers.engine.sampling.rows import Rows
from workers.engine.sampling.torch_rows import TORCH_ROWS
from workers.engine.scheduling.batching_policies import make_policy
from workers.engine.scheduling.scheduled_batch import ScheduledBatch
from workers.engine.sequence import Sequence
from workers.engine.sequence_builder import SequenceBuilder
from workers.engine.speculation.acceptance import DraftedRows, accepted_at_each_place, drafted_rows
from workers.engine.speculation.draft_model import load_draft_model
from workers.engine.speculation.load import load_speculator
from workers.engine.speculation.speculator import Speculator
from workers.engine.stage import failure_of
from workers.engine.stats import NO_SPECULATION, EngineStats
from workers.engine.text.tokenizer import Tokenizer
from workers.engine.tiers.select import open_tier, scheduler_type
from workers.engine.token_step import Drawn, StepOutputs, TokenDrawer

_log = structlog.get_logger(__name__)


class ModelFailed(EngineFailed):
    """Raised when the model cannot compute a step."""


class Engine:
    """Scheduler, model and sampler of one model; see `Generator`. `load` builds one from a checkpoint folder.

    Attributes:
        speculator: chooses drafts; None draws one token of each sequence per step.
        tier: where blocks of the KV cache are kept in addition, if anywhere.
        adapters: loads LoRA adapters; None if the engine computes none.
    """

    task: Task = "generate"

    def __init__(
        self,
        config: EngineConfig,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        max_model_len: int,
        num_blocks: int,
        computation: Mapping[str, str],
        speculator: Speculator | None = None,
        rows: Rows = TORCH_ROWS,
    ) -> None:
        self.tokenizer = tokenizer
        self.computation = computation
        self.fingerprint = fingerprint(computation)
        self.constraints, masks = load_grammar_support(tokenizer, vocab_size, eos_token_ids)
        self.speculator = speculator
        self.adapters = runner.adapters
        self._rows = rows
        self._drawer = TokenDrawer(tokenizer, masks, rows)
        self.max_model_len = max_model_len
        self._config = config
        self._runner = runner
        self._gpu_memory = GpuMemory(runner.device)
        self._vocab_size = vocab_size
        self._sequences = SequenceBuilder(
            tokenizer,
            eos_token_ids,
            max_model_len=max_model_len,
            vocab_size=vocab_size,
            device=runner.device,
            watermark=config.watermark,
        )
        self._pool = BlockPool(num_blocks)
        self.tier = open_tier(config.tier, runner.cache, self._pool, computation, config.step_sizes)
        self._prefixes = _own_prefixes(config, self._pool) if self.tier is None else self.tier.prefixes
        self._scheduler = scheduler_type(self.tier)(
            KVCacheManager(self._pool, config.block_size, self._prefixes),
            config.max_num_seqs,
            config.max_num_batched_tokens,
            config.tenant_weights,
            make_policy(config.scheduling, config.max_num_seqs, config.batch_wait),
        )
        self._block_size = config.block_size
        self._batch_size = self._batch_tokens = 0  # of the last step
        self._is_interrupted: Callable[[], bool] | None = None
        self._unfinished: dict[str, list[Sequence]] = {}  # choices that have not ended, by job id
        self._ended: list[EngineOutput] = []  # requests that were complete when they were added

    @classmethod
    def load(cls, config: EngineConfig, progress: StartupProgress | None = None) -> Engine:
        """Load an engine from a checkpoint folder.

        Raises:
            ConfigError: the folder, its architecture or the settings are not supported.
            EngineLost: another process of the engine did not start.
        """
        progress = progress or StartupProgress()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        model_config = read_model_config(config.model)
        device = config.torch_device()
        dtype = config.torch_dtype(device, checkpoint_dtype(model_config.dtype))
        loading = begin_loading(config, model_config, dtype, device)
        read_ahead(config.model)
        with ThreadPoolExecutor(max_workers=2) as helpers:  # without OpenMP, so that they get no team of threads
            weights = helpers.submit(hash_weights, config.model, config.cache_dir)
            building = helpers.submit(progress.timed("kernels", choose_kernels), config, device, dtype)
            tokenizer = Tokenizer(config.model, **config.tokenizer_options())
            kernels = with_calibrated_weights(building.result(), config, model_config, tokenizer)
            runner, size = loading.load(kernels, progress)
        draft_model = load_draft_model(config, tokenizer, model_config.vocab_size, dtype, device)
        eos = read_eos_token_ids(config.model, model_config.eos_token_ids)
        if tokenizer.eos_token_id is not None:
            eos |= {tokenizer.eos_token_id}
        return cls(
            config,
            runner,
            tokenizer,
            vocab_size=model_config.vocab_size,
            eos_token_ids=eos,
            max_model_len=size.max_model_len,
            num_blocks=size.num_blocks,
            computation=describe_computation(
                weights.result(),
                device,
                portable=kernels.portable and model_config.architecture in ARCHITECTURES,
                dtype=str(dtype),
                quantization=kernels.quantization.identity,
                ranks=str(config.tensor_parallel_size),
                kernels=kernels_identity(kernels),
                watermark=config.watermark.identity,
            ),
            speculator=load_speculator(config, model_config.architecture, kernels, device, draft_model),
            rows=kernels.rows(),
        )

    def add(self, request: EngineRequest) -> None:
        """Accept a request, which then always ends, with a finish reason or an error.

        Raises:
            ContextLengthExceeded: the prompt does not fit `max_model_len`.
            InvalidRequest: a token outside the vocabulary, an empty prompt, too many choices, an id in use.
            EngineFailed: the grammar does not accept a resumed token.
        """
        if request.id in self._unfinished:
            raise InvalidRequest(f"request {request.id} is running already")
        if request.adapter is not None and self.adapters is None:
            raise InvalidRequest("this engine computes no adapters", param="model")
        check_request(
            request,
            max_num_seqs=self._config.max_num_seqs,
            max_model_len=self.max_model_len,
            vocab_size=self._vocab_size,
        )
        sequences = self._sequences.build(request)
        unfinished = [sequence for sequence in sequences if sequence.finish_reason is None]
        if not unfinished:
            self._ended.append(EngineOutput(request.id, (), finished=True))
            return
        self._unfinished[request.id] = list(unfinished)
        first, *others = unfinished
        first.forks, first.echo = tuple(others), Echo.from_params(list(request.prompt), request.params)
        self._scheduler.add(first)

    def abort(self, job_id: str) -> bool:
        """Drop a request and free its blocks at once. Return False if the engine does not have it."""
        sequences = self._unfinished.pop(job_id, None)
        if sequences is None:
            return False
        self._scheduler.remove(sequences)
        return True

    def abandon_when(self, urgent: Callable[[], bool]) -> None:
        """Let a step with batch-class work be abandoned once `urgent` returns true; see `Generator`."""
        self._is_interrupted = urgent

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Call `wake` when the engine is lost: otherwise, its work changes only with commands and steps."""
        self._runner.wake_with(wake)

    def has_work(self) -> bool:
        return bool(self._ended) or self._scheduler.has_work() or self._runner.is_lost

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=self._scheduler.num_waiting,
            blocks_total=self._pool.num_blocks,
            blocks_used=self._pool.num_blocks - self._pool.num_free,
            preemptions=self._scheduler.num_preemptions,
            prefix_queries=self._prefixes.queries if self._prefixes else 0,
            prefix_hits=self._prefixes.hits if self._prefixes else 0,
            gpu_memory_used=self._gpu_memory.used(),
            block_size=self._block_size,
            batch_size=self._batch_size,
            batch_tokens=self._batch_tokens,
            speculation=self.speculator.stats() if self.speculator else NO_SPECULATION,
            tier=self.tier.stats() if self.tier else None,
        )

    def step(self) -> list[EngineOutput]:
        """Compute one batch. Return what it added to each request, in no particular order.

        Raises EngineLost if another process of the engine has ended.
        """
        self._runner.check()
        outputs, self._ended = self._ended, []
        batch = self._scheduler.schedule()
        if self.speculator is not None:
            batch = self._scheduler.add_drafts(batch, self.speculator.propose(batch))
        self._batch_size, self._batch_tokens = len(batch.items), batch.num_rows
        if batch.items:
            outputs += self._run(batch)
        return outputs

    def _run(self, batch: ScheduledBatch) -> list[EngineOutput]:
        try:
            drawn = self._draw(batch)
        except EngineLost:
            raise
        except BaseException as error:
            failure = failure_of("step", error, run_id=" ".join(item.sequence.job_id for item in batch.items))
            if failure is None:
                raise
            return self._isolate(batch, failure)
        if drawn is None:
            self._scheduler.end_drafts(batch)
            return []
        return self._collect(batch, *drawn)

    def _draw(self, batch: ScheduledBatch) -> tuple[Drawn, list[DraftedRows]] | None:
        """Compute a batch and draw the next token of each sequence. Return None if the step was interrupted.

        When this raises, only the contents of the cache have changed, so parts of the batch can be run again.
        """
        sampling, drawing = batch.sampling, batch.drawing
        mask = self._drawer.begin_mask(drawing)
        try:
            logits = self._compute(batch)
        finally:
            if mask is not None:
                mask.settle()
        if logits is None:
            return None
        if batch.answers_only:
            return self._drawer.draw(logits, drawing, mask), []
        last, drafted, scored = logits.tensor_split((len(sampling), len(sampling) + batch.num_drafts))
        if len(scored):
            record_prompt_logprobs(batch, scored, self.tokenizer.token_bytes, self._rows)
        if len(drawing) < len(sampling):  # padding
            last = last[[row for row, sequence in enumerate(sampling) if not sequence.ended]]
        return self._drawer.draw(last, drawing, mask), drafted_rows(batch, drafted)

    def _compute(self, batch: ScheduledBatch) -> Tensor | None:
        """Compute the logits. Raises EngineLost, EngineFailed when out of memory, otherwise ModelFailed."""
        try:
            return self._runner.run(batch, self._is_interrupted if batch.interruptible else None)
        except EngineLost:
            raise
        except torch.OutOfMemoryError as error:
            raise EngineFailed("the engine does not have enough memory for this request") from error
        except Exception as error:
            raise ModelFailed("the engine could not compute this request") from error

    def _isolate(self, batch: ScheduledBatch, error: HeadraceError) -> list[EngineOutput]:
        """Run the sequences of a failed batch one by one, so that only the request that causes the failure ends.

        Raises the error if the model can compute none of several requests: then the engine is at fault.
        """
        _log.error("step_failed", rows=len(batch.items), error=type(error.__cause__ or error).__name__)
        self._scheduler.end_drafts(batch)
        if len(batch.items) == 1:
            return [self._fail(batch.items[0].sequence.job_id, error)]
        requests = {item.sequence.job_id for item in batch.items}
        outputs = []
        for index, item in enumerate(batch.items):
            if item.sequence.job_id in self._unfinished:
                outputs += self._run(ScheduledBatch([item.with_drafts(())], batch.copies if index == 0 else []))
        broken = {output.job_id for output in outputs if isinstance(output.error, ModelFailed)}
        if len(requests) > 1 and broken == requests:
            raise error
        return outputs

    def _collect(self, batch: ScheduledBatch, drawn: Drawn, drafted: list[DraftedRows]) -> list[EngineOutput]:
        """Append the drawn tokens to their sequences, accept drafts, and end the sequences that are complete."""
        self._scheduler.advance(batch)
        added = StepOutputs(self.tokenizer)
        added.append(drawn)
        for accepted in accepted_at_each_place(drafted, self._drawer, added):
            for sequence in accepted:
                self._scheduler.accept_draft(sequence)
        self._scheduler.end_drafts(batch)
        if self.speculator is not None:
            self.speculator.learn(batch)
        ended = [sequence for sequence in drawn.sequences if sequence.finish_reason is not None]
        for sequence in ended:
            if sequence.job_id not in added.failed:
                self._finish(sequence)
        for job_id in added.failed:
            self._scheduler.remove(self._unfinished.pop(job_id, []), failed=True)
        complete = {each.job_id for each in ended if not self._unfinished.get(each.job_id)}
        for job_id in complete:
            self._unfinished.pop(job_id, None)
        return added.outputs(complete)

    def _finish(self, sequence: Sequence) -> None:
        if self.speculator is not None:
            self.speculator.remember(sequence)
        self._scheduler.finish(sequence)
        self._unfinished[sequence.job_id].remove(sequence)

    def _fail(self, job_id: str, error: HeadraceError) -> EngineOutput:
        self._scheduler.remove(self._unfinished.pop(job_id, []), failed=True)
        return EngineOutput(job_id, (), finished=True, error=error)


def _own_prefixes(config: EngineConfig, pool: BlockPool) -> PrefixCache | None:
    """Return the cache of prompts' beginnings in the KV cache of the device alone, if it is on."""
    return PrefixCache(pool, config.block_size) if config.prefix_caching else None
