"""The engine: requests in, tokens out, one step at a time.

Single-threaded and synchronous; the tokenizer alone may be used from elsewhere. It ties scheduler, model and
sampler together and knows nothing of queues, leases or clocks.
"""

from __future__ import annotations

from itertools import count

import structlog
import torch
from torch import Tensor

from shared.errors import ConfigError, ContextLengthExceeded, EngineFailed, InvalidRequest
from shared.protocol import Token
from workers.engine.config import DTYPES, EngineConfig
from workers.engine.interface import EngineOutput, EngineRequest, EngineStats
from workers.engine.kernels.choose import choose_kernels
from workers.engine.kv_cache import BlockPool, KVCacheManager
from workers.engine.loader import Progress, load_model, read_eos_token_ids, read_model_config
from workers.engine.model_runner import ModelRunner
from workers.engine.models.config import ModelConfig
from workers.engine.sampler import sample
from workers.engine.scheduler import ScheduledBatch, Scheduler
from workers.engine.sequence import Sequence
from workers.engine.tokenizer import Tokenizer

_log = structlog.get_logger(__name__)


class Engine:
    """See the module. `load` makes one from a checkpoint folder."""

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
    ) -> None:
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self._config = config
        self._runner = runner
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._pool = BlockPool(num_blocks)
        self._scheduler = Scheduler(
            KVCacheManager(self._pool, config.block_size), config.max_num_seqs, config.max_num_batched_tokens
        )
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
        num_blocks, max_model_len = _size_cache(config, model_config, dtype)
        model = load_model(
            config.model,
            model_config,
            dtype=dtype,
            device=device,
            max_model_len=max_model_len,
            kernels=choose_kernels(config, device, dtype),
            progress=progress,
        )
        _log.info(
            "engine_loaded", device=str(device), dtype=str(dtype), blocks=num_blocks, max_model_len=max_model_len
        )
        eos = read_eos_token_ids(config.model, model_config)
        if tokenizer.eos_token_id is not None:
            eos |= {tokenizer.eos_token_id}
        return cls(
            config,
            ModelRunner(model, num_blocks, config.block_size),
            tokenizer,
            vocab_size=model_config.vocab_size,
            eos_token_ids=eos,
            max_model_len=max_model_len,
            num_blocks=num_blocks,
        )

    def add(self, request: EngineRequest) -> None:
        """Take a request; it will end, in tokens or in an error.

        Raises:
            ContextLengthExceeded: prompt and max_tokens do not fit `max_model_len`.
            InvalidRequest: a token outside the vocabulary, an empty prompt, too many choices, an id in use.
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
        self._scheduler.add(first)

    def abort(self, request_id: str) -> bool:
        """Drop a request and free its blocks at once; False where it is not here."""
        sequences = self._unfinished.pop(request_id, None)
        if sequences is None:
            return False
        self._scheduler.remove(sequences)
        return True

    def has_work(self) -> bool:
        return bool(self._ended) or self._scheduler.has_work()

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=self._scheduler.num_waiting,
            blocks_total=self._pool.num_blocks,
            blocks_used=self._pool.num_blocks - self._pool.num_free,
            preemptions=self._scheduler.num_preemptions,
        )

    def step(self) -> list[EngineOutput]:
        """Compute one batch; what it added to each request, in no particular order."""
        outputs, self._ended = self._ended, []
        batch = self._scheduler.schedule()
        if batch.items:
            outputs += self._run(batch)
        return outputs

    def _run(self, batch: ScheduledBatch) -> list[EngineOutput]:
        try:
            logits = self._runner.run(batch)
        except RuntimeError as error:  # torch's, out-of-memory among them
            return self._isolate(batch, error)
        assert logits is not None, "nothing interrupts"
        return self._collect(batch, logits)

    def _isolate(self, batch: ScheduledBatch, error: RuntimeError) -> list[EngineOutput]:
        """Compute the sequences of a failed batch one by one, so that the failure ends its offender alone."""
        _log.error("step_failed", rows=len(batch.items), error=type(error).__name__)
        if len(batch.items) == 1:
            failed = batch.items[0].sequence.request_id
            return [self._fail(failed, "the engine could not compute this request")]
        outputs = []
        for index, item in enumerate(batch.items):
            if item.sequence.request_id in self._unfinished:
                outputs += self._run(ScheduledBatch([item], batch.copies if index == 0 else []))
        return outputs

    def _collect(self, batch: ScheduledBatch, logits: Tensor) -> list[EngineOutput]:
        """Sample, append, and end what is at its end."""
        sampled = [item.sequence for item in batch.items if item.samples]
        self._scheduler.advance(batch)
        tokens: dict[str, list[Token]] = {}
        failed: list[str] = []
        for sequence, token_id in zip(sampled, sample(logits, sampled), strict=True):
            if token_id is None:
                failed.append(sequence.request_id)
                continue
            tokens.setdefault(sequence.request_id, []).append(sequence.accept(token_id))
            if sequence.finish_reason is not None:
                self._scheduler.remove([sequence])
                self._unfinished[sequence.request_id].remove(sequence)
        outputs = [
            self._fail(request_id, "the model's output is not a number") for request_id in dict.fromkeys(failed)
        ]
        for request_id in tokens.keys() - set(failed):
            finished = not self._unfinished[request_id]
            if finished:
                del self._unfinished[request_id]
            outputs.append(EngineOutput(request_id, tuple(tokens[request_id]), finished))
        return outputs

    def _fail(self, request_id: str, message: str) -> EngineOutput:
        self.abort(request_id)
        return EngineOutput(request_id, (), finished=True, error=EngineFailed(message))

    def _check(self, request: EngineRequest) -> None:
        prompt, params = request.prompt, request.params
        if request.id in self._unfinished:
            raise InvalidRequest(f"request {request.id} is already here")
        if not prompt:
            raise InvalidRequest("prompt must not be empty", param="prompt")
        if params.n > self._config.max_num_seqs:
            raise InvalidRequest(f"n must be at most {self._config.max_num_seqs} on this worker", param="n")
        for token_id in (*prompt, *(t for tokens in request.resumed for t in tokens)):
            if not 0 <= token_id < self._vocab_size:
                raise InvalidRequest(
                    f"token {token_id} is outside the vocabulary of {self._vocab_size}", param="prompt"
                )
        if len(prompt) + (params.max_tokens or 1) > self.max_model_len:
            raise ContextLengthExceeded(
                f"this model's maximum context length is {self.max_model_len} tokens, but the request asks for "
                f"{len(prompt) + (params.max_tokens or 1)}: {len(prompt)} in the prompt and "
                f"{params.max_tokens or 'at least 1'} in the answer",
                param="max_tokens" if params.max_tokens else "messages",
            )

    def _sequence(self, request: EngineRequest, choice: int) -> Sequence:
        params = request.params
        sequence = Sequence(
            request_id=request.id,
            choice=choice,
            order=next(self._arrivals),
            params=params,
            tokens=list(request.prompt),
            num_prompt_tokens=len(request.prompt),
            max_tokens=params.max_tokens or self.max_model_len - len(request.prompt),
            eos_token_ids=self._eos_token_ids,
            text=self.tokenizer.stream(params.stop),
        )
        for token_id in request.resumed[choice] if choice < len(request.resumed) else ():
            sequence.accept(token_id)
        return sequence


def _size_cache(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> tuple[int, int]:
    """Number of KV blocks, and the longest sequence that both they and the model can hold."""
    limit = model.length_limit()
    if config.max_model_len is not None and config.max_model_len > limit:
        raise ConfigError(
            f"max_model_len {config.max_model_len} is over what the checkpoint allows, {limit}",
            param="max_model_len",
        )
    if config.max_model_len is None and limit < model.max_position_embeddings:
        raise ConfigError(
            f"the checkpoint uses a sliding window; the engine is right only up to its {limit} tokens: "
            f"set max_model_len to at most {limit}",
            param="max_model_len",
        )
    wanted = config.max_model_len or limit
    if config.num_kv_blocks is not None:
        num_blocks = config.num_kv_blocks
    else:
        token_bytes = 2 * model.num_layers * model.num_kv_heads * model.head_dim * dtype.itemsize
        affordable = int(config.kv_cache_gib * 2**30 / (token_bytes * config.block_size))
        num_blocks = min(affordable, config.max_num_seqs * -(-wanted // config.block_size))
    room = num_blocks * config.block_size
    if config.max_model_len is not None and room < config.max_model_len:
        raise ConfigError(
            f"the KV cache holds {room} tokens, fewer than max_model_len {config.max_model_len}",
            param="kv_cache_gib",
        )
    if room < 2:
        raise ConfigError("kv_cache_gib is too small for a single KV block", param="kv_cache_gib")
    return num_blocks, min(wanted, room)
