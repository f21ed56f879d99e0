"""The engine: requests in, tokens out, one step at a time.

Single-threaded and synchronous; the tokenizer alone may be used from elsewhere. It ties scheduler, model and
sampler together and knows nothing of queues, leases or clocks.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, count
from typing import TYPE_CHECKING

import structlog
import torch
from torch import Tensor

from shared.errors import ConfigError, ContextLengthExceeded, EngineFailed, HeadraceError, InvalidRequest
from shared.models.worker_registry import Task
from shared.protocol import Token
from workers.engine.cache.block_pool import BlockPool
from workers.engine.cache.kv_cache import KVCacheManager
from workers.engine.cache.prefix_cache import PrefixCache
from workers.engine.cache_sizing import size_cache
from workers.engine.config import DTYPES, EngineConfig
from workers.engine.echo import Echo
from workers.engine.execution.cuda_graphs import graph_sizes
from workers.engine.execution.device import on
from workers.engine.interface import (
    MAX_LOGPROBS,
    Constrainer,
    EngineOutput,
    EngineRequest,
    EngineStats,
    check_vocabulary,
)
from workers.engine.kernels.select import choose_kernels
from workers.engine.model_runner import ModelRunner
from workers.engine.models.loader import Progress, fingerprint, load_model, read_eos_token_ids, read_model_config
from workers.engine.sampling.logprobs import LogProbs
from workers.engine.sampling.prompt_logprobs import note_scores
from workers.engine.sampling.sampler import sample
from workers.engine.scheduling.batching_policies import make_policy
from workers.engine.scheduling.scheduler import ScheduledBatch, Scheduler
from workers.engine.sequence import Sequence
from workers.engine.stage import Stage
from workers.engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from workers.engine.grammar.matcher import MaskFiller

_log = structlog.get_logger(__name__)


class ModelFailed(EngineFailed):
    """The model could not compute a step."""


class Engine:
    """See the module. `load` makes one from a checkpoint folder."""

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
        fingerprint: str,
    ) -> None:
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.constraints: Constrainer | None
        self._masks: MaskFiller | None
        self.constraints, self._masks = _constraining(tokenizer, vocab_size, eos_token_ids)
        self.max_model_len = max_model_len
        self._config = config
        self._runner = runner
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._pool = BlockPool(num_blocks)
        self._prefixes = PrefixCache(self._pool, config.block_size) if config.prefix_caching else None
        self._scheduler = Scheduler(
            KVCacheManager(self._pool, config.block_size, self._prefixes),
            config.max_num_seqs,
            config.max_num_batched_tokens,
            config.tenant_weights,
            make_policy(config.scheduling, config.max_num_seqs, config.batch_wait),
        )
        self._urgent: Callable[[], bool] | None = None
        self._unfinished: dict[str, list[Sequence]] = {}  # choices still to end, by request
        self._ended: list[EngineOutput] = []  # without a step
        self._arrivals = count()

    @classmethod
    def load(cls, config: EngineConfig, progress: Progress = lambda share: None) -> Engine:
        """Raises ConfigError for a folder, an architecture or settings that cannot be served.

        Args:
            progress: called with the share that is done, 0 to 1.
        """
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        model_config = read_model_config(config.model)
        device = config.torch_device()
        if model_config.dtype not in DTYPES:
            raise ConfigError(
                f"the checkpoint's dtype {model_config.dtype} is not supported: {', '.join(DTYPES)} are"
            )
        dtype = config.torch_dtype(device, DTYPES[model_config.dtype])
        tokenizer = Tokenizer(config.model)
        size = size_cache(config, model_config, dtype, device)
        with on(device):
            model = load_model(
                config.model,
                model_config,
                dtype=dtype,
                device=device,
                max_model_len=size.max_model_len,
                kernels=choose_kernels(config, device, dtype),
                progress=progress,
            )
        runner = ModelRunner(
            model,
            size,
            max_num_seqs=config.max_num_seqs,
            graph_sizes=graph_sizes(config.max_num_batched_tokens, invariant=config.batch_invariant),
        )
        if config.batch_invariant and device.type != "cpu" and not runner.recorded:
            raise ConfigError(f"this model cannot be batch_invariant on {device}", param="batch_invariant")
        _log.info(
            "engine_loaded",
            device=str(device),
            dtype=str(dtype),
            blocks=size.num_blocks,
            max_model_len=size.max_model_len,
            full_length_sequences=round(size.full_sequences, 1),
        )
        eos = read_eos_token_ids(config.model, model_config)
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
            fingerprint=fingerprint(config.model, device, str(dtype), config.quantization),
        )

    def add(self, request: EngineRequest) -> None:
        """Take a request; it will end, in tokens or in an error.

        Raises:
            ContextLengthExceeded: prompt and max_tokens do not fit `max_model_len`.
            InvalidRequest: a token outside the vocabulary, an empty prompt, too many choices, an id in use.
            EngineFailed: a resumed token that the grammar does not take.
        """
        self._check(request)
        sequences = [self._sequence(request, choice) for choice in range(request.params.n)]
        unfinished = [sequence for sequence in sequences if sequence.finish_reason is None]
        if not unfinished:
            self._ended.append(EngineOutput(request.id, (), finished=True))
            return
        self._unfinished[request.id] = list(unfinished)
        first, *others = unfinished
        first.forks = others
        if request.params.echo:
            first.echo = Echo(list(request.prompt), scored=request.params.logprobs is not None)
        self._scheduler.add(first)

    def abort(self, job_id: str) -> bool:
        """Drop a request and free its blocks at once; False where it is not here."""
        sequences = self._unfinished.pop(job_id, None)
        if sequences is None:
            return False
        self._scheduler.remove(sequences)
        return True

    def abandon_when(self, urgent: Callable[[], bool]) -> None:
        self._urgent = urgent

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
        )

    def step(self) -> list[EngineOutput]:
        """Compute one batch; what it added to each request, in no particular order."""
        outputs, self._ended = self._ended, []
        batch = self._scheduler.schedule()
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

    def _draw(self, batch: ScheduledBatch, drawing: list[Sequence]) -> tuple[list[int | None], LogProbs] | None:
        """Compute a batch and draw the next tokens; None where it was interrupted.

        Nothing but the cache's contents has changed when it raises, so that parts of the batch can be run again.
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
            note_scores(batch, logits[len(sampling) :], self.tokenizer.piece)
            logits = logits[: len(sampling)]
        if len(drawing) < len(sampling):  # padding
            logits = logits[[row for row, sequence in enumerate(sampling) if not sequence.ended]]
        log_probs = LogProbs(logits, drawing, self.tokenizer.piece)
        return sample(logits, drawing, mask), log_probs

    def _compute(self, batch: ScheduledBatch) -> Tensor | None:
        """Raises ModelFailed; EngineFailed where the batch alone is too large for the device."""
        try:
            return self._runner.run(batch, self._urgent if batch.interruptible else None)
        except torch.OutOfMemoryError as error:
            raise EngineFailed("the engine has not enough memory for this request") from error
        except Exception as error:
            raise ModelFailed("the engine could not compute this request") from error

    def _isolate(self, batch: ScheduledBatch, error: HeadraceError) -> list[EngineOutput]:
        """Run the sequences of a failed batch one by one, so that the failure ends its offender alone.

        Raises the error where the model can compute none of several requests: then the engine is at fault.
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
        self, batch: ScheduledBatch, drawing: list[Sequence], drawn: list[int | None], log_probs: LogProbs
    ) -> list[EngineOutput]:
        """Append what was drawn, and end what is at its end."""
        self._scheduler.advance(batch)
        tokens: dict[str, list[Token]] = {}
        echoes: dict[str, tuple[Token, ...]] = {}
        failed: dict[str, HeadraceError] = {}
        for row, (sequence, token_id) in enumerate(zip(drawing, drawn, strict=True)):
            name = sequence.job_id
            try:
                with Stage("decoding of a token", run_id=name):
                    token = _accepted(sequence, token_id, log_probs, row)
                    if sequence.echo is not None:
                        echoes[name] = sequence.echo.tokens(self.tokenizer.texts, sequence.choice)
                        sequence.echo = None
            except HeadraceError as error:
                failed[name] = error
                continue
            tokens.setdefault(name, []).append(token)
            if sequence.finish_reason is not None:
                self._scheduler.finish(sequence)
                self._unfinished[name].remove(sequence)
        outputs = [self._fail(job_id, error) for job_id, error in failed.items()]
        for job_id in tokens.keys() - failed.keys():
            finished = not self._unfinished[job_id]
            if finished:
                del self._unfinished[job_id]
            echo = echoes.get(job_id, ())
            outputs.append(EngineOutput(job_id, tuple(tokens[job_id]), finished, prompt=echo))
        return outputs

    def _fail(self, job_id: str, error: HeadraceError) -> EngineOutput:
        self._scheduler.remove(self._unfinished.pop(job_id, []), failed=True)
        return EngineOutput(job_id, (), finished=True, error=error)

    def _check(self, request: EngineRequest) -> None:
        prompt, params = request.prompt, request.params
        if request.id in self._unfinished:
            raise InvalidRequest(f"request {request.id} is already here")
        if not prompt:
            raise InvalidRequest("prompt must not be empty", param="prompt")
        if params.n > self._config.max_num_seqs:
            raise InvalidRequest(f"n must be at most {self._config.max_num_seqs} on this worker", param="n")
        if params.logprobs is not None and not 0 <= params.logprobs <= MAX_LOGPROBS:
            raise InvalidRequest(f"logprobs must be at least 0 and at most {MAX_LOGPROBS}", param="logprobs")
        if len(prompt) + (params.max_tokens or 1) > self.max_model_len:
            raise ContextLengthExceeded(
                f"this model's maximum context length is {self.max_model_len} tokens, but the request asks for "
                f"{len(prompt) + (params.max_tokens or 1)}: {len(prompt)} in the prompt and "
                f"{params.max_tokens or 'at least 1'} in the answer",
                param="max_tokens" if params.max_tokens else "messages",
            )
        check_vocabulary(chain(prompt, *request.resumed), self._vocab_size, "prompt")
        if any(token_id >= self._vocab_size for token_id in params.logit_bias):
            raise InvalidRequest(
                f"logit_bias has a token outside the vocabulary of {self._vocab_size}", param="logit_bias"
            )

    def _sequence(self, request: EngineRequest, choice: int) -> Sequence:
        params = request.params
        sequence = Sequence(
            job_id=request.id,
            choice=choice,
            order=next(self._arrivals),
            params=params,
            tokens=list(request.prompt),
            num_prompt_tokens=len(request.prompt),
            max_tokens=params.max_tokens or self.max_model_len - len(request.prompt),
            eos_token_ids=self._eos_token_ids,
            text=self.tokenizer.stream(params.stop, calls=request.reader is not None),
            matcher=request.matcher() if request.matcher else None,
            reader=request.reader() if request.reader else None,
            priority=request.priority,
            tenant=request.tenant,
            prefix_salt=request.prefix_salt,
        )
        for token_id in request.resumed[choice] if choice < len(request.resumed) else ():
            sequence.accept(token_id)
        return sequence


def _accepted(sequence: Sequence, token_id: int | None, log_probs: LogProbs, row: int) -> Token:
    """Append the token of row `row` to its sequence. Raises EngineFailed for none, or one that does not fit."""
    if token_id is None:
        raise EngineFailed("the model's output is not a number, or no token fits the grammar")
    return sequence.accept(token_id, log_probs.of(row, token_id))


def _constraining(
    tokenizer: Tokenizer, vocab_size: int, eos_token_ids: frozenset[int]
) -> tuple[Constrainer | None, MaskFiller | None]:
    """What grammars need; nothing where xgrammar is not installed."""
    try:
        from workers.engine.grammar.compiler import Constraints  # noqa: PLC0415  xgrammar need not be there
        from workers.engine.grammar.matcher import MaskFiller  # noqa: PLC0415
    except ImportError as error:
        _log.warning("no_grammars", missing=error.name)
        return None, None
    return Constraints(tokenizer, vocab_size, eos_token_ids), MaskFiller(vocab_size)
