"""Generator whose choices run in vLLM.

The sequences are those of the native engine: they find the ends, the text and the tool calls of answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import torch

from shared.errors import EngineFailed, HeadraceError, InvalidRequest
from shared.models.worker_registry import Task
from shared.protocol import FinishReason, Token, TokenLogprobs
from workers.engine.echo import Echo
from workers.engine.grammar.support import load_grammar_support
from workers.engine.interface import EngineOutput, EngineRequest
from workers.engine.mark import Mark
from workers.engine.models.fingerprint import fingerprint
from workers.engine.request_check import check_prompt_length, check_request
from workers.engine.sampling.logprobs import MIN_LOGPROB, spell, spell_next
from workers.engine.sequence_builder import SequenceBuilder
from workers.engine.stage import Stage
from workers.engine.stats import EngineStats
from workers.engine.text.tokenizer import Tokenizer
from workers.runtimes.vllm.choice import Choice
from workers.runtimes.vllm.executor import Executor, Logprobs, StepResult
from workers.runtimes.vllm.sampling_arguments import arguments_of, check_supported


@dataclass
class _Update:
    """Additions of one step to a request."""

    tokens: list[Token] = field(default_factory=list)
    prompt: tuple[Token, ...] = ()
    cached_tokens: int = 0
    error: HeadraceError | None = None


class VllmEngine:
    """Generator over an executor of choices, usually vLLM's engine.

    Args:
        native_sampling: the executor runs the processor of logits that chooses tokens; see `sampling_arguments`.
    """

    task: Task = "generate"

    def __init__(
        self,
        executor: Executor,
        tokenizer: Tokenizer,
        eos_token_ids: frozenset[int],
        *,
        computation: Mapping[str, str],
        max_num_seqs: int,
        native_sampling: bool,
        watermark: Mark,
    ) -> None:
        self.tokenizer = tokenizer
        self.computation = computation
        self.fingerprint = fingerprint(computation)
        self.max_model_len = executor.max_model_len
        self.constraints, _ = load_grammar_support(tokenizer, executor.vocab_size, eos_token_ids)
        self._executor = executor
        self._max_num_seqs = max_num_seqs
        self._native_sampling = native_sampling
        self._sequences = SequenceBuilder(
            tokenizer,
            eos_token_ids,
            max_model_len=executor.max_model_len,
            vocab_size=executor.vocab_size,
            device=torch.device(executor.device_type),
            watermark=watermark,
        )
        self._choices: dict[str, Choice] = {}  # that have not ended, by their id in vLLM
        self._unfinished: dict[str, list[Choice]] = {}  # the same by job id
        self._ended: list[EngineOutput] = []  # requests that were complete when they were added
        self._prefix_queries = 0
        self._prefix_hits = 0

    def add(self, request: EngineRequest) -> None:
        """Accept a request, which then always ends; see `Generator`.

        Raises:
            ContextLengthExceeded, InvalidRequest: this engine could not finish the request.
            EngineFailed: the grammar does not accept a resumed token.
        """
        if request.id in self._unfinished:
            raise InvalidRequest(f"request {request.id} is running already")
        check_request(
            request,
            max_num_seqs=self._max_num_seqs,
            max_model_len=self.max_model_len,
            vocab_size=self._executor.vocab_size,
        )
        if request.params.max_tokens == 0:  # vLLM computes a token nevertheless
            one = msgspec.structs.replace(request.params, max_tokens=1)
            check_prompt_length(dataclasses.replace(request, params=one), self.max_model_len)
        if not self._native_sampling:
            check_supported(request)
        sequences = [each for each in self._sequences.build(request) if not each.ended]
        if not sequences:
            self._ended.append(EngineOutput(request.id, (), finished=True))
            return
        sequences[0].echo = Echo.from_params(list(request.prompt), request.params)
        choices = [Choice(f"{request.id}/{sequence.choice}", sequence) for sequence in sequences]
        self._unfinished[request.id] = choices
        try:
            for choice in choices:
                self._start(choice, request.prefix_salt)
        except ValueError as error:  # of vLLM's own checks
            self.abort(request.id)
            raise InvalidRequest(f"vLLM does not accept this request: {error}") from error

    def _start(self, choice: Choice, prefix_salt: bytes) -> None:
        sequence, arguments = choice.sequence, arguments_of(choice, native_sampling=self._native_sampling)
        self._executor.add(choice.id, list(sequence.tokens), arguments, salt=prefix_salt, priority=sequence.rank)
        self._choices[choice.id] = choice

    def abort(self, job_id: str) -> bool:
        choices = self._unfinished.pop(job_id, None)
        if choices is None:
            return False
        self._drop([choice for choice in choices if choice.id in self._choices])
        return True

    def _drop(self, choices: list[Choice]) -> None:
        """Let vLLM abort choices."""
        for choice in choices:
            del self._choices[choice.id]
        if choices:
            self._executor.abort([choice.id for choice in choices])

    def abandon_when(self, urgent: Callable[[], bool]) -> None:
        """Do nothing: vLLM does not abandon a step."""

    def wake_with(self, wake: Callable[[], None]) -> None:
        """Do nothing: its work changes only with commands and steps."""

    def has_work(self) -> bool:
        return bool(self._ended or self._choices)

    def stats(self) -> EngineStats:
        stats = self._executor.stats()
        return dataclasses.replace(stats, prefix_queries=self._prefix_queries, prefix_hits=self._prefix_hits)

    def step(self) -> list[EngineOutput]:
        """Compute one step of vLLM. Return what it added to each request, in no particular order."""
        outputs, self._ended = self._ended, []
        if not self._choices:
            return outputs
        updates: dict[str, _Update] = {}
        stopped: list[Choice] = []
        for result in self._executor.step():
            choice = self._choices.get(result.id)
            if choice is None:
                continue
            update = updates.setdefault(choice.sequence.job_id, _Update())
            self._take(choice, result, update)
            if result.finished:
                del self._choices[choice.id]
            elif choice.sequence.ended:  # by a stop string, a grammar or its reasoning
                stopped.append(choice)
        self._drop(stopped)
        return outputs + [self._output(job_id, update) for job_id, update in updates.items()]

    def _take(self, choice: Choice, result: StepResult, update: _Update) -> None:
        """Add what a step computed for a choice to the update of its request."""
        sequence = choice.sequence
        try:
            with Stage("decoding of a token", run_id=sequence.job_id):
                if sequence.num_cached_tokens is None:
                    self._count_prefix(choice, result.cached_tokens)
                if sequence.echo is not None:
                    update.prompt = self._echoed(sequence.echo, result.prompt_logprobs, sequence.choice)
                    sequence.echo = None
                update.cached_tokens = sequence.num_cached_tokens or 0
                update.tokens += self._accept(choice, result)
        except HeadraceError as error:
            update.error = error

    def _accept(self, choice: Choice, result: StepResult) -> list[Token]:
        """Append the new tokens to a sequence. Raises EngineFailed if none could be chosen."""
        sequence = choice.sequence
        if sequence.max_tokens == 0:
            sequence.finish_reason = FinishReason.LENGTH
            return []
        if choice.failure is not None:
            raise choice.failure
        tokens: list[Token] = []
        for token_id, logprobs in zip(result.token_ids, result.logprobs, strict=True):
            if sequence.ended:
                break
            tokens.append(sequence.accept(token_id, self._spelled(choice, token_id, logprobs)))
        if result.finished and not sequence.ended:
            raise EngineFailed("vLLM ended this answer early")
        return tokens

    def _spelled(self, choice: Choice, token_id: int, logprobs: Logprobs | None) -> TokenLogprobs | None:
        if logprobs is None:
            return None
        own, top = _split(logprobs, token_id, choice.sequence.params.logprobs or 0)
        tokenizer = self.tokenizer
        return spell_next(
            choice.sequence,
            token_id,
            own[0],
            top,
            token_bytes=tokenizer.token_bytes,
            special_ids=tokenizer.special_ids,
        )

    def _echoed(self, echo: Echo, scores: Sequence[Logprobs | None], choice: int) -> tuple[Token, ...]:
        """Return the prompt's tokens, with the log-probabilities that vLLM computed."""
        if echo.scored:
            for position in echo.scored_positions(0, len(scores)):
                target, found = echo.target_token(position), scores[position + 1]
                assert found is not None  # only the first token has none
                (logprob, rank), top = _split(found, target, echo.top or 0)
                token_bytes = self.tokenizer.token_bytes
                echo.record(position, spell(target, logprob, top, token_bytes, rank=rank if echo.ranked else 0))
        return echo.tokens(self.tokenizer.token_texts, choice)

    def _count_prefix(self, choice: Choice, cached_tokens: int) -> None:
        sequence = choice.sequence
        sequence.num_cached_tokens = cached_tokens
        self._prefix_queries += sequence.num_tokens
        self._prefix_hits += cached_tokens

    def _output(self, job_id: str, update: _Update) -> EngineOutput:
        if update.error is not None:
            self.abort(job_id)
            return EngineOutput(job_id, (), finished=True, error=update.error)
        running = self._unfinished[job_id] = [
            choice for choice in self._unfinished[job_id] if not choice.sequence.ended
        ]
        if not running:
            del self._unfinished[job_id]
        return EngineOutput(job_id, tuple(update.tokens), not running, None, update.prompt, update.cached_tokens)


def _split(logprobs: Logprobs, token_id: int, count: int) -> tuple[tuple[float, int], list[tuple[int, float]]]:
    """Return the log-probability and the rank of a token, and the `count` most likely tokens."""
    values = {index: (max(value, MIN_LOGPROB), rank) for index, (value, rank) in logprobs.items()}
    ordered = sorted((rank, index, value) for index, (value, rank) in values.items() if rank <= count)
    return values[token_id], [(index, value) for _, index, value in ordered[:count]]
