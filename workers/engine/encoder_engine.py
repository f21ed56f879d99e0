"""Engine of models that do not generate: it takes the inputs of many requests and returns a vector, or the scores
of classes, for each.

It never waits for a batch to fill: the inputs that arrived during a step form the next one, most urgent class
first. So batches grow with the load, and an idle engine answers at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import structlog
import torch
from torch import Tensor

from shared.errors import ConfigError, ContextLengthExceeded, HeadraceError, InvalidRequest
from shared.models.startup_progress import StartupProgress
from shared.models.worker_registry import Task
from shared.protocol import EncoderWork, PriorityClass, Result, Score, VectorType
from workers.engine.config import EngineConfig
from workers.engine.execution.gpu_memory import GpuMemory
from workers.engine.interface import EngineOutput, EngineRequest
from workers.engine.kernels.select import choose_kernels
from workers.engine.models.bert import Bert
from workers.engine.models.checkpoint import read_json
from workers.engine.models.encoder_families import EncoderConfig
from workers.engine.models.encoder_heads import Head
from workers.engine.models.encoder_loader import load_encoder, read_max_input_tokens
from workers.engine.models.fingerprint import describe_computation, fingerprint, hash_weights, kernels_identity
from workers.engine.request_check import check_vocabulary
from workers.engine.stage import Stage
from workers.engine.stats import EngineStats
from workers.engine.text.tokenizer import Tokenizer

_log = structlog.get_logger(__name__)

MAX_TOKEN_NUMBERS = 2**21  # in a result with an output for each token: 8 MiB, and about 40 MiB as JSON
VECTOR_TYPES: Mapping[VectorType, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class _Input:
    """Tokens of one input; those of its second text begin at `second_start`."""

    tokens: tuple[int, ...]
    second_start: int


@dataclass(eq=False)
class _Run:
    """State of one request: its inputs, and the outputs of those computed so far."""

    request: EngineRequest
    work: EncoderWork
    inputs: list[_Input]
    outputs: list[Tensor] = field(default_factory=list)

    @classmethod
    def from_request(cls, request: EngineRequest) -> _Run:
        assert request.work is not None, "check_task refuses other requests"
        ends = list(accumulate(request.lengths))
        starts = [0, *ends[:-1]]
        second_starts = request.second_starts or request.lengths
        inputs = [
            _Input(request.prompt[start:end], second_start)
            for start, end, second_start in zip(starts, ends, second_starts, strict=True)
        ]
        return cls(request, request.work, inputs)

    @property
    def num_missing(self) -> int:
        return len(self.inputs) - len(self.outputs)


class EncoderEngine:
    """Generator that returns vectors or scores of classes instead of tokens.

    Args:
        max_model_len: most tokens of one input.
        max_tokens: most tokens of one step; a step computes at least one input.
    """

    constraints = None

    def __init__(
        self,
        model: Bert,
        head: Head,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        max_model_len: int,
        max_tokens: int,
        computation: Mapping[str, str],
        device: torch.device,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.computation = computation
        self.fingerprint = fingerprint(computation)
        self.task: Task = head.task
        self._model = model
        self._head = head
        self._vocab_size = vocab_size
        self._gpu_memory = GpuMemory(device)
        self._max_tokens = max_tokens
        self._queues: dict[PriorityClass, deque[_Run]] = {priority: deque() for priority in PriorityClass}
        self._requests: dict[str, _Run] = {}

    @classmethod
    def load(cls, config: EngineConfig, progress: StartupProgress | None = None) -> EncoderEngine:
        """Load an engine. Raises ConfigError if the checkpoint folder or the settings are not supported."""
        if config.tensor_parallel_size > 1:
            raise ConfigError("tensor_parallel_size must be 1 for encoders", param="tensor_parallel_size")
        progress = progress or StartupProgress()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        device = config.torch_device()
        dtype = config.torch_dtype(device, torch.float32)
        found = EncoderConfig.parse(read_json(config.model / "config.json"))
        with progress.phase("kernels"):
            kernels = choose_kernels(config, device, dtype)
        with progress.phase("weights"):
            model, head = load_encoder(config.model, found, kernels, dtype, device)
        engine = cls(
            model,
            head,
            Tokenizer(config.model, **config.tokenizer_options()),
            vocab_size=found.vocab_size,
            max_model_len=read_max_input_tokens(config.model, found, config.max_model_len),
            max_tokens=config.max_num_batched_tokens,
            computation=describe_computation(
                hash_weights(config.model, config.cache_dir),
                device,
                dtype=str(dtype),
                quantization=config.quantization,
                kernels=kernels_identity(kernels),
            ),
            device=device,
        )
        _log.info(
            "encoder_engine_loaded",
            task=engine.task,
            device=str(device),
            dtype=str(dtype),
            max_model_len=engine.max_model_len,
        )
        return engine

    def add(self, request: EngineRequest) -> None:
        added = _Run.from_request(request)
        self._check(added)
        self._requests[request.id] = added
        self._queues[request.priority].append(added)

    def _check(self, run: _Run) -> None:
        request = run.request
        if request.id in self._requests:
            raise InvalidRequest(f"request {request.id} is running already")
        longest = max(request.lengths)
        if longest > self.max_model_len:
            raise ContextLengthExceeded(
                f"this model's maximum input length is {self.max_model_len} tokens, but an input has {longest}",
                param=request.prompt_param,
            )
        check_vocabulary(request.prompt, self._vocab_size, request.prompt_param)
        self._head.check(run.work)
        if (size := self._head.row_size(run.work) * len(request.prompt)) > MAX_TOKEN_NUMBERS:
            raise InvalidRequest(
                f"the outputs of all tokens must have at most {MAX_TOKEN_NUMBERS} numbers, got {size}; send "
                "fewer or shorter inputs",
                param=request.prompt_param,
            )

    def abort(self, job_id: str) -> bool:
        found = self._requests.pop(job_id, None)
        if found is None:
            return False
        self._queues[found.request.priority].remove(found)
        return True

    def step(self) -> list[EngineOutput]:
        """Compute the next inputs. Return the requests that are complete with them."""
        return self._run(self._next_batch())

    def _run(self, batch: list[_Run]) -> list[EngineOutput]:
        """Compute a batch; if that fails, its requests one by one, so that only the request at fault ends."""
        requests = list(dict.fromkeys(batch))
        try:
            with Stage("step", run_id=requests[0].request.id):
                self._compute(batch)
        except HeadraceError as error:
            if len(requests) > 1:
                return self._isolate(batch, requests, error)
            outputs = [EngineOutput(requests[0].request.id, finished=True, error=error)]
        else:
            outputs = [
                EngineOutput(each.request.id, finished=True, result=self._result(each))
                for each in requests
                if not each.num_missing
            ]
        for output in outputs:
            self.abort(output.job_id)
        return outputs

    def _isolate(self, batch: list[_Run], requests: list[_Run], error: HeadraceError) -> list[EngineOutput]:
        """Compute requests one by one. Raises the error if all of several fail: then the engine is at fault."""
        outputs = [output for one in requests for output in self._run([each for each in batch if each is one])]
        if sum(output.error is not None for output in outputs) == len(requests):
            raise error
        return outputs

    def _next_batch(self) -> list[_Run]:
        """Return the request of each input that the step computes, at least one."""
        found: list[_Run] = []
        budget = self._max_tokens
        for queue in self._queues.values():
            for each in queue:
                for part in each.inputs[len(each.outputs) :]:
                    if found and len(part.tokens) > budget:
                        return found
                    found.append(each)
                    budget -= len(part.tokens)
        return found

    def _compute(self, batch: list[_Run]) -> None:
        taken = dict.fromkeys(batch, 0)
        inputs: list[_Input] = []
        for each in batch:
            inputs.append(each.inputs[len(each.outputs) + taken[each]])
            taken[each] += 1
        tokens = [token for part in inputs for token in part.tokens]
        lengths, second_starts = [len(part.tokens) for part in inputs], [part.second_start for part in inputs]
        for each, hidden in zip(batch, self._model.forward(tokens, lengths, second_starts), strict=True):
            each.outputs.append(self._head.output(hidden, each.work).cpu())

    def _result(self, run: _Run) -> Result:
        results = self._head.results(run.outputs, run.work)
        dtype = torch.float32 if isinstance(run.work, Score) else VECTOR_TYPES[run.work.vector_type]
        vectors = tuple(_bytes(result.to(dtype)) for result in results)
        return Result(
            vectors=vectors, width=results[0].shape[1] if results[0].dim() > 1 else 0, labels=self._head.labels
        )

    def abandon_when(self, urgent: Callable[[], bool]) -> None:
        """Do nothing: steps are short and never abandoned."""

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Do nothing: its work changes only with commands and steps."""

    def has_work(self) -> bool:
        return bool(self._requests)

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._requests), gpu_memory_used=self._gpu_memory.used())


def _bytes(numbers: Tensor) -> bytes:
    """Return numbers as little-endian bytes, which are those in memory on all supported machines."""
    return numbers.contiguous().view(torch.uint8).numpy().tobytes()
