"""Embedding engine: it takes the inputs of many requests and returns a vector for each.

It never waits for a batch to fill: the inputs that arrived during a step form the next one, most urgent class
first. So batches grow with the load, and an idle engine answers at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import structlog
import torch
from torch.nn.functional import normalize

from shared.errors import ContextLengthExceeded, HeadraceError, InvalidRequest
from shared.models.worker_registry import Task
from shared.protocol import PriorityClass, Result
from workers.engine.config import EngineConfig
from workers.engine.interface import EngineOutput, EngineRequest, EngineStats, check_vocabulary
from workers.engine.kernels.select import choose_kernels
from workers.engine.models.bert import Bert, Pooling
from workers.engine.models.bert_loader import load_bert, read_bert_config, read_max_input_tokens, read_pooling
from workers.engine.models.loader import fingerprint
from workers.engine.stage import Stage
from workers.engine.text.tokenizer import Tokenizer

_log = structlog.get_logger(__name__)


@dataclass(eq=False)
class _Embedding:
    """State of one request: its inputs, and the vectors of those computed so far."""

    request: EngineRequest
    inputs: list[tuple[int, ...]]
    vectors: list[bytes] = field(default_factory=list)

    @property
    def num_missing(self) -> int:
        return len(self.inputs) - len(self.vectors)


class EmbeddingEngine:
    """Generator that returns vectors instead of tokens.

    Args:
        max_model_len: most tokens of one input.
        max_tokens: most tokens of one step; a step computes at least one input.
    """

    constraints = None
    task: Task = "embed"

    def __init__(
        self,
        model: Bert,
        tokenizer: Tokenizer,
        pooling: Pooling,
        *,
        vocab_size: int,
        dimensions: int,
        max_model_len: int,
        max_tokens: int,
        fingerprint: str,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.fingerprint = fingerprint
        self._model = model
        self._pooling = pooling
        self._vocab_size = vocab_size
        self._dimensions = dimensions
        self._max_tokens = max_tokens
        self._queues: dict[PriorityClass, deque[_Embedding]] = {priority: deque() for priority in PriorityClass}
        self._requests: dict[str, _Embedding] = {}

    @classmethod
    def load(cls, config: EngineConfig) -> EmbeddingEngine:
        """Load an engine. Raises ConfigError if the checkpoint folder or the settings are not supported."""
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        device = config.torch_device()
        dtype = config.torch_dtype(device, torch.float32)
        found = read_bert_config(config.model)
        kernels = choose_kernels(config, device, dtype)
        engine = cls(
            load_bert(config.model, found, kernels, dtype, device),
            Tokenizer(config.model, **config.tokenizer_options()),
            read_pooling(config.model),
            vocab_size=found.vocab_size,
            dimensions=found.hidden,
            max_model_len=read_max_input_tokens(config.model, found, config.max_model_len),
            max_tokens=config.max_num_batched_tokens,
            fingerprint=fingerprint(config.model, device, str(dtype), config.quantization),
        )
        _log.info(
            "embedding_engine_loaded", device=str(device), dtype=str(dtype), max_model_len=engine.max_model_len
        )
        return engine

    def add(self, request: EngineRequest) -> None:
        self._check(request)
        ends = list(accumulate(request.lengths))
        starts = [0, *ends[:-1]]
        inputs = [request.prompt[start:end] for start, end in zip(starts, ends, strict=True)]
        added = self._requests[request.id] = _Embedding(request, inputs)
        self._queues[request.priority].append(added)

    def _check(self, request: EngineRequest) -> None:
        if request.id in self._requests:
            raise InvalidRequest(f"request {request.id} is running already")
        longest = max(request.lengths)
        if longest > self.max_model_len:
            raise ContextLengthExceeded(
                f"this model's maximum input length is {self.max_model_len} tokens, but an input has {longest}",
                param="input",
            )
        check_vocabulary(request.prompt, self._vocab_size, "input")
        if request.dimensions is not None and request.dimensions > self._dimensions:
            raise InvalidRequest(
                f"dimensions must be at most {self._dimensions}, got {request.dimensions}", param="dimensions"
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

    def _run(self, batch: list[_Embedding]) -> list[EngineOutput]:
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
                EngineOutput(each.request.id, finished=True, result=Result(vectors=tuple(each.vectors)))
                for each in requests
                if not each.num_missing
            ]
        for output in outputs:
            self.abort(output.job_id)
        return outputs

    def _isolate(
        self, batch: list[_Embedding], requests: list[_Embedding], error: HeadraceError
    ) -> list[EngineOutput]:
        """Compute requests one by one. Raises the error if all of several fail: then the engine is at fault."""
        outputs = [output for one in requests for output in self._run([each for each in batch if each is one])]
        if sum(output.error is not None for output in outputs) == len(requests):
            raise error
        return outputs

    def _next_batch(self) -> list[_Embedding]:
        """Return the request of each input that the step computes, at least one."""
        found: list[_Embedding] = []
        budget = self._max_tokens
        for queue in self._queues.values():
            for each in queue:
                for tokens in each.inputs[len(each.vectors) :]:
                    if found and len(tokens) > budget:
                        return found
                    found.append(each)
                    budget -= len(tokens)
        return found

    def _compute(self, batch: list[_Embedding]) -> None:
        taken = dict.fromkeys(batch, 0)
        inputs: list[tuple[int, ...]] = []
        for each in batch:
            inputs.append(each.inputs[len(each.vectors) + taken[each]])
            taken[each] += 1
        tokens = [token for part in inputs for token in part]
        vectors = self._model.forward(tokens, [len(part) for part in inputs], self._pooling)
        for each, vector in zip(batch, vectors, strict=True):
            size = each.request.dimensions
            cut = vector if size is None else normalize(vector[:size], dim=0)
            each.vectors.append(cut.cpu().numpy().astype(np.dtype("<f4")).tobytes())

    def abandon_when(self, urgent: Callable[[], bool]) -> None:
        """Do nothing: steps are short and never abandoned."""

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Do nothing: its work changes only with commands and steps."""

    def has_work(self) -> bool:
        return bool(self._requests)

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._requests))
