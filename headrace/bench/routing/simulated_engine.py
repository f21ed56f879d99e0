"""Engine that takes the time of a GPU and computes nothing: it has the real scheduler and prefix cache, and sleeps
instead of running a model.

Several of them share a machine without competing for its cores, so that routing alone makes the difference.
"""

from __future__ import annotations

import time
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType

from shared.errors import InvalidRequest
from shared.models.worker_registry import Task
from shared.protocol import DEFAULT_PROMPT_OPTIONS, Message, PromptOptions, Tools
from workers.engine.cache.block_pool import BlockPool
from workers.engine.cache.kv_cache import KVCacheManager
from workers.engine.cache.prefix_cache import PrefixCache
from workers.engine.interface import EngineOutput, EngineRequest, too_long
from workers.engine.request_check import check_prompt_length
from workers.engine.scheduling.scheduled_batch import ScheduledBatch
from workers.engine.scheduling.scheduler import Scheduler
from workers.engine.sequence import Sequence as Choice
from workers.engine.stats import EngineStats
from workers.engine.text.detokenizer import TextStream
from workers.scripted_engine import ScriptedTokenizer

BLOCK_SIZE = 16
TOKEN_BYTES = 4


@dataclass(frozen=True)
class Device:
    """A simulated GPU.

    A step takes `step_s`, and `row_s` for each answer that it advances, and `prompt_token_s` for each token of a
    prompt that is not in the prefix cache. These are seconds at a `speed` of 1.

    Attributes:
        seats: maximum number of sequences of a step.
        blocks: size of the KV cache in blocks of BLOCK_SIZE tokens.
        step_tokens: maximum number of tokens of a step.
    """

    step_s: float = 0.005
    row_s: float = 0.000_05
    prompt_token_s: float = 1 / 40_000
    speed: float = 1.0
    seats: int = 8
    blocks: int = 4096
    step_tokens: int = 2048
    max_model_len: int = 16_384

    def step_seconds(self, batch: ScheduledBatch) -> float:
        """Return how long a step takes."""
        prompt_tokens = sum(item.num_new_tokens for item in batch.items if item.sequence.prefilling)
        rows = sum(not item.sequence.prefilling for item in batch.items)
        return (self.step_s + rows * self.row_s + prompt_tokens * self.prompt_token_s) / self.speed


@dataclass(frozen=True)
class Counts:
    """Counters of an engine: requests begun, and tokens looked up and found in the prefix cache."""

    requests: int
    prefix_queries: int
    prefix_hits: int

    def since(self, before: Counts) -> Counts:
        return Counts(
            self.requests - before.requests,
            self.prefix_queries - before.prefix_queries,
            self.prefix_hits - before.prefix_hits,
        )


class FourByteTokenizer(ScriptedTokenizer):
    """Tokenizer with one token for each four bytes of a text, and for what is left at the end of each message.

    The next prompt of a chat therefore contains the tokens of its answers.
    """

    vocab_size = 256**TOKEN_BYTES

    def encode(
        self, text: str, *, special: bool = True, most_tokens: int | None = None, param: str = "prompt"
    ) -> list[int]:
        data = text.encode("utf-8", "replace")
        if most_tokens is not None and len(data) > most_tokens * TOKEN_BYTES:
            raise too_long(len(data), "bytes", most_tokens, param)
        return [int.from_bytes(data[at : at + TOKEN_BYTES]) for at in range(0, len(data), TOKEN_BYTES)]

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Tools | None = None,
        options: PromptOptions = DEFAULT_PROMPT_OPTIONS,
        *,
        most_tokens: int | None = None,
    ) -> list[int]:
        texts = [text for message in messages for text in (f"{message.role}:", message.content)]
        return [token for text in (*texts, "assistant:") for token in self.encode(text, most_tokens=most_tokens)]

    def entry(self, token_id: int) -> str:
        return token_id.to_bytes(TOKEN_BYTES).lstrip(b"\0").decode("utf-8", "replace")


class SimulatedEngine:
    """Generator that answers after the time that `device` would take.

    The device does not wait for this process: a step begins when the previous one ended, if there was work then.

    Attributes:
        run_ids: the runs that it was given, in order.
    """

    constraints = None
    fingerprint = "fp_simulated"
    computation: Mapping[str, str] = MappingProxyType({})
    task: Task = "generate"

    def __init__(self, device: Device) -> None:
        self.tokenizer = FourByteTokenizer()
        self.max_model_len = device.max_model_len
        self.run_ids: list[str] = []
        self._device = device
        self._pool = BlockPool(device.blocks)
        self._prefixes = PrefixCache(self._pool, BLOCK_SIZE)
        cache = KVCacheManager(self._pool, BLOCK_SIZE, self._prefixes)
        self._scheduler = Scheduler(cache, device.seats, device.step_tokens)
        self._arrivals = count()
        self._unfinished: dict[str, Choice] = {}
        self._step_ended = 0.0  # by time.monotonic

    def add(self, request: EngineRequest) -> None:
        check_prompt_length(request, self.max_model_len)
        if request.params.n != 1:
            raise InvalidRequest(f"n must be 1 on a simulated engine, got {request.params.n}", param="n")
        resumed = request.resumed[0] if request.resumed else ()
        sequence = Choice(
            job_id=request.id,
            choice=0,
            arrival=next(self._arrivals),
            params=request.params,
            tokens=[*request.prompt],
            num_prompt_tokens=len(request.prompt),
            max_tokens=request.max_output_tokens(self.max_model_len),
            eos_token_ids=frozenset(),
            text=TextStream(self.tokenizer.decode_all),
            priority=request.priority,
            tenant=request.tenant,
            prefix_salt=request.prefix_salt,
        )
        for token in resumed:
            sequence.accept(token)
        if not self._scheduler.has_work():
            self._step_ended = time.monotonic()
        self.run_ids.append(request.id)
        self._unfinished[request.id] = sequence
        self._scheduler.add(sequence)

    def abort(self, job_id: str) -> bool:
        sequence = self._unfinished.pop(job_id, None)
        if sequence is not None:
            self._scheduler.remove([sequence])
        return sequence is not None

    def step(self) -> list[EngineOutput]:
        batch = self._scheduler.schedule()
        self._step_ended += self._device.step_seconds(batch)
        time.sleep(max(0.0, self._step_ended - time.monotonic()))
        sampling = [item.sequence for item in batch.items if item.samples]
        self._scheduler.advance(batch)
        return [self._extend(sequence) for sequence in sampling]

    def _extend(self, sequence: Choice) -> EngineOutput:
        token = sequence.accept(_next_token(sequence.tokens))
        if sequence.ended:
            self._scheduler.finish(sequence)
            del self._unfinished[sequence.job_id]
        return EngineOutput(
            sequence.job_id, (token,), sequence.ended, cached_tokens=sequence.num_cached_tokens or 0
        )

    def abandon_when(self, urgent: Callable[[], bool]) -> None:
        """Ignore the signal: a step is short."""

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Do nothing: its work changes only with commands and steps."""

    def has_work(self) -> bool:
        return self._scheduler.has_work()

    def counts(self) -> Counts:
        """Return the counters; any thread may call this."""
        return Counts(len(self.run_ids), self._prefixes.queries, self._prefixes.hits)

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=self._scheduler.num_waiting,
            blocks_used=self._pool.num_blocks - self._pool.num_free,
            blocks_total=self._pool.num_blocks,
            preemptions=self._scheduler.num_preemptions,
            prefix_queries=self._prefixes.queries,
            prefix_hits=self._prefixes.hits,
        )


def _next_token(tokens: Sequence[int]) -> int:
    """Return a token of letters that depends on the last tokens."""
    number = zlib.crc32(array("q", tokens[-BLOCK_SIZE:]).tobytes())
    return int.from_bytes(bytes(ord("a") + (number >> 4 * place) % 16 for place in range(TOKEN_BYTES)))
