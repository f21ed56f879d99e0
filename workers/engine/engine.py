"""Continuous-batching engine: it takes requests and returns tokens, one step at a time.

Single-threaded and synchronous; only the tokenizer may be used from other threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import structlog
import torch
from torch import Tensor

from shared.errors import ConfigError, EngineFailed, HeadraceError, InvalidRequest
from shared.models.startup_progress import StartupProgress
from shared.models.worker_registry import Task
from shared.protocol import FinishReason, Token
from workers.engine.cache.block_pool import BlockPool
from workers.engine.cache.kv_cache import KVCacheManager
from workers.engine.cache.prefix_cache import PrefixCache
from workers.engine.cache_sizing import size_cache
from workers.engine.config import DTYPES, EngineConfig
from workers.engine.echo import Echo
from workers.engine.execution.gpu_memory import GpuMemory
from workers.engine.grammar.support import load_grammar_support
from workers.engine.interface import EngineOutput, EngineRequest
from workers.engine.kernels.select import choose_kernels
from workers.engine.model_runner import ModelRunner, load_runner
from workers.engine.models.fingerprint import describe_computation, fingerprint, hash_weights, kernels_identity
from workers.engine.models.loader import read_ahead, read_eos_token_ids, read_model_config
from workers.engine.request_check import check_request
from workers.engine.sampling.logprobs import StepLogprobs
from workers.engine.sampling.prompt_logprobs import record_prompt_logprobs
from workers.engine.sampling.sampler import NOTHING_DRAWN, forced, sample
from workers.engine.scheduling.batching_policies import make_policy
from workers.engine.scheduling.scheduler import ScheduledBatch, Scheduler
from workers.engine.sequence import Sequence
from workers.engine.sequence_builder import SequenceBuilder
from workers.engine.stage import Stage
from workers.engine.stats import EngineStats
from workers.engine.text.tokenizer import Tokenizer
from workers.engine.waits import EngineWaits

_log = structlog.get_logger(__name__)


class ModelFailed(EngineFailed):
    """Raised when the model cannot compute a step."""


class Engine:
    """Scheduler, model and sampler of one model; see `Generator`. `load` builds one from a checkpoint folder."""

    task: Task = "generate"

    def __init__(
        self,
        config: EngineConfig,
        runner: ModelRunner,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        max_model_len: int,
        num_blocks: int,
        computation: Mapping[str, str],
    ) -> None:
        self.tokenizer = tokenizer
        self.computation = computation
        self.fingerprint = fingerprint(computation)
        self.constraints, self._masks = load_grammar_support(tokenizer, vocab_size, eos_token_ids)
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
        self._prefixes = PrefixCache(self._pool, config.block_size) if config.prefix_caching else None
        self._scheduler = Scheduler(
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
        """
        progress = progress or StartupProgress()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        model_config = read_model_config(config.model)
        device = config.torch_device()
        if model_config.dtype not in DTYPES:
            raise ConfigError(
                f"the checkpoint's dtype must be one of {', '.join(DTYPES)}, got {model_config.dtype}",
                param="model",
            )
        dtype = config.torch_dtype(device, DTYPES[model_config.dtype])
        size = size_cache(config, model_config, dtype, device)
        read_ahead(config.model)
        with ThreadPoolExecutor(max_workers=2) as helpers:  # without OpenMP, so that they get no team of threads
            weights = helpers.submit(hash_weights, config.model, config.cache_dir)
            building = helpers.submit(progress.timed("kernels", choose_kernels), config, device, dtype)
            tokenizer = Tokenizer(config.model, **config.tokenizer_options())
            kernels = building.result()
            runner = load_runner(
                config,
                model_config,
                size,
                kernels=kernels,
                dtype=dtype,
                device=device,
                progress=progress,
            )
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
                dtype=str(dtype),
                quantization=config.quantization,
                kernels=kernels_identity(kernels),
                watermark=config.watermark.identity,
            ),
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
        first.forks = others
        first.echo = Echo.from_params(list(request.prompt), request.params)
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
        """Do nothing: its work changes only with commands and steps."""

    def has_work(self) -> bool:
        return bool(self._ended) or self._scheduler.has_work()

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
        )

    def step(self) -> list[EngineOutput]:
        """Compute one batch. Return what it added to each request, in no particular order."""
        outputs, self._ended = self._ended, []
        batch = self._scheduler.schedule()
        self._batch_size, self._batch_tokens = len(batch.items), sum(item.num_new_tokens for item in batch.items)
        if batch.items:
            outputs += self._run(batch)
        return outputs

    def _run(self, batch: ScheduledBatch) -> list[EngineOutput]:
        drawing = [item.sequence for item in batch.items if item.samples and not item.sequence.ended]
        try:
            with Stage("step", run_id=" ".join(item.sequence.job_id for item in batch.items)):
                drawn = self._draw(batch, drawing)
        except HeadraceError as error:
            return self._isolate(batch, error)
        return [] if drawn is None else self._collect(batch, drawing, *drawn)

    def _draw(self, batch: ScheduledBatch, drawing: list[Sequence]) -> tuple[list[int | None], StepLogprobs] | None:
        """Compute a batch and draw its next tokens. Return None if the step was interrupted.

        When this raises, only the contents of the cache have changed, so parts of the batch can be run again.
        """
        mask = self._masks.begin(drawing) if self._masks else None
        try:
            logits = self._compute(batch)
        finally:
            if mask is not None:
                mask.settle()
        if mask is not None:
            mask.check()
        if logits is None:
            return None
        sampling = [item.sequence for item in batch.items if item.samples]
        if len(logits) > len(sampling):
            record_prompt_logprobs(batch, logits[len(sampling) :], self.tokenizer.token_bytes)
            logits = logits[: len(sampling)]
        if len(drawing) < len(sampling):  # padding
            logits = logits[[row for row, sequence in enumerate(sampling) if not sequence.ended]]
        logprobs = StepLogprobs(logits, drawing, self.tokenizer.token_bytes, self.tokenizer.special_ids)
        drawn = sample(logits, drawing, mask)
        return [forced(sequence, token) for sequence, token in zip(drawing, drawn, strict=True)], logprobs

    def _compute(self, batch: ScheduledBatch) -> Tensor | None:
        """Compute the logits. Raises EngineFailed when out of memory, ModelFailed for other failures."""
        try:
            return self._runner.run(batch, self._is_interrupted if batch.interruptible else None)
        except torch.OutOfMemoryError as error:
            raise EngineFailed("the engine does not have enough memory for this request") from error
        except Exception as error:
            raise ModelFailed("the engine could not compute this request") from error

    def _isolate(self, batch: ScheduledBatch, error: HeadraceError) -> list[EngineOutput]:
        """Run the sequences of a failed batch one by one, so that only the request that causes the failure ends.

        Raises the error if the model can compute none of several requests: then the engine is at fault.
        """
        _log.error("step_failed", rows=len(batch.items), error=type(error.__cause__ or error).__name__)
        if len(batch.items) == 1:
            return [self._fail(batch.items[0].sequence.job_id, error)]
        requests = {item.sequence.job_id for item in batch.items}
        outputs = []
        for index, item in enumerate(batch.items):
            if item.sequence.job_id in self._unfinished:
                outputs += self._run(ScheduledBatch([item], batch.copies if index == 0 else []))
        broken = {output.job_id for output in outputs if isinstance(output.error, ModelFailed)}
        if len(requests) > 1 and broken == requests:
            raise error
        return outputs

    def _collect(
        self, batch: ScheduledBatch, drawing: list[Sequence], drawn: list[int | None], logprobs: StepLogprobs
    ) -> list[EngineOutput]:
        """Append the drawn tokens to their sequences, and end the sequences that are complete."""
        self._scheduler.advance(batch)
        tokens: dict[str, list[Token]] = {}
        echoes: dict[str, tuple[Token, ...]] = {}
        cached: dict[str, int] = {}
        waits: dict[str, EngineWaits] = {}
        failed: dict[str, HeadraceError] = {}
        for row, (sequence, token_id) in enumerate(zip(drawing, drawn, strict=True)):
            job_id = sequence.job_id
            try:
                with Stage("decoding of a token", run_id=job_id):
                    found = _append(sequence, token_id, logprobs, row)
                    if sequence.echo is not None:
                        echoes[job_id] = sequence.echo.tokens(self.tokenizer.token_texts, sequence.choice)
                        sequence.echo = None
            except HeadraceError as error:
                failed[job_id] = error
                continue
            tokens.setdefault(job_id, []).extend(found)
            cached[job_id] = sequence.num_cached_tokens or 0
            if sequence.waits.changed:
                waits[job_id] = sequence.waits.take()
            if sequence.finish_reason is not None:
                self._scheduler.finish(sequence)
                self._unfinished[job_id].remove(sequence)
        outputs = [self._fail(job_id, error) for job_id, error in failed.items()]
        for job_id in tokens.keys() - failed.keys():
            finished = not self._unfinished[job_id]
            if finished:
                del self._unfinished[job_id]
            outputs.append(
                EngineOutput(
                    job_id,
                    tuple(tokens[job_id]),
                    finished,
                    prompt=echoes.get(job_id, ()),
                    cached_tokens=cached[job_id],
                    waits=waits.get(job_id),
                )
            )
        return outputs

    def _fail(self, job_id: str, error: HeadraceError) -> EngineOutput:
        self._scheduler.remove(self._unfinished.pop(job_id, []), failed=True)
        return EngineOutput(job_id, (), finished=True, error=error)


def _append(sequence: Sequence, token_id: int | None, logprobs: StepLogprobs, row: int) -> tuple[Token, ...]:
    """Append the token drawn in `row`, unless the sequence only computes its prompt.

    Raises EngineFailed if no token was drawn or the grammar refuses it.
    """
    if sequence.max_tokens == 0:
        sequence.finish_reason = FinishReason.LENGTH
        return ()
    if token_id is None:
        raise EngineFailed(NOTHING_DRAWN)
    return (sequence.accept(token_id, logprobs.for_token(row, token_id)),)
