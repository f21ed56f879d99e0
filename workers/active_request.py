"""A request while a worker runs it: its lease, its prompt, and the seq of its next token."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import msgspec

from shared.protocol import (
    DEFAULT_PROMPT_OPTIONS,
    EncoderWork,
    ErrorInfo,
    PromptUsage,
    Request,
    RequestState,
    RunMark,
    Terminal,
    Token,
    TokenEvent,
    Usage,
    count_reasoning,
)
from shared.queue.interface import Claim, Delivery, due_at
from shared.token_log.interface import Append, Lease
from workers.engine.interface import EngineOutput, EngineRequest
from workers.engine.waits import EngineWaits
from workers.request_series import RequestSeries
from workers.run_spans import UNTRACED, RunSpans

MARK_INTERVAL_S = 1.0  # between marks of a run: how exactly the end of a lost worker is known
NO_WAITS = EngineWaits()


@dataclass(slots=True)
class ActiveRequest:
    """One request that this worker holds the lease of.

    Attributes:
        id: the id of the job.
        held_since: by time.monotonic.
        in_engine: the engine has it, and may be computing it.
        prepared: seconds until then.
        mark: what was measured of this run, as logged last; None before its first append.
        marked_at: when it was logged, by time.monotonic.
        waits: the latest of the engine's measurements.
        first_token_at: when the first tokens of this run were appended, by time.monotonic; None before.
        last_token_at: when tokens of this run were appended last, by time.monotonic; None before the first.
        run_id: the id of this attempt, under which the engine runs it. It contains the lease epoch, so that a late
            output of an earlier attempt is not taken for one of this.
        next_seq: seq of the next token that the engine produces.
        reasoning_tokens: number of logged tokens of reasoning.
        prompt_usage: counts of the prompt, by the run with the first token; None before it.
        spans: the spans of this run.
        series: the histograms that count this run; None of a request of the worker's own.
        choices: the number of choices of the answer.
    """

    delivery: Delivery
    lease: Lease
    prompt: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    second_starts: tuple[int, ...] = ()
    deadline_timer: asyncio.TimerHandle | None = None
    held_since: float = field(default_factory=time.monotonic)
    in_engine: bool = False
    prepared: float = 0.0
    mark: RunMark | None = None
    marked_at: float = 0.0
    waits: EngineWaits = NO_WAITS
    spans: RunSpans = UNTRACED
    series: RequestSeries | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    id: str = field(init=False)
    run_id: str = field(init=False)
    choices: int = field(init=False)
    next_seq: int = field(init=False)
    reasoning_tokens: int = field(init=False)
    prompt_usage: PromptUsage | None = field(init=False)

    @classmethod
    def unqueued(cls, request: Request, worker: str = "", epoch: int = 0) -> ActiveRequest:
        """Return a request of the worker's own: it has no place in the queue, no log, and no real lease."""
        claim = Claim(request.id, request.model, request.priority, entry="")
        return cls(Delivery(request, claim, 1), Lease(request.id, worker, epoch, 0.0))

    def __post_init__(self) -> None:
        self.id = self.delivery.request.id
        self.run_id = f"{self.id}/{self.lease.epoch}"
        self.choices = self.delivery.request.params.n
        self.next_seq = self.lease.next_seq
        self.prompt = self.lease.prompt or self.delivery.request.recorded_prompt
        self.reasoning_tokens = count_reasoning(self.history)
        self.prompt_usage = self.lease.history[0].prompt_usage if self.lease.history else None

    @property
    def history(self) -> list[Token]:
        """The tokens that earlier attempts logged."""
        return [token for event in self.lease.history for token in event.tokens]

    def enter_engine(self) -> None:
        """Note that the engine has it."""
        self.in_engine, self.prepared = True, time.monotonic() - self.held_since
        self.spans.enter_engine()

    def time_left(self, deadline: float) -> float:
        """Return the seconds until `deadline`, a time of the server's clock.

        The local clock only measures the age of the lease.
        """
        return max(0.0, deadline - self.lease.acquired_at - (time.monotonic() - self.held_since))

    def engine_request(
        self, token_budget: int, prefix_salt: bytes, bad_words: tuple[tuple[int, ...], ...] = ()
    ) -> EngineRequest | None:
        """Return the request for the engine, to continue after its logged tokens; None if they complete it.

        A request without max_tokens may produce `token_budget` tokens over all its choices.
        """
        request = self.delivery.request
        params = request.params
        if params.max_tokens is None and token_budget > 0:  # otherwise the engine refuses the prompt
            params = msgspec.structs.replace(params, max_tokens=max(1, token_budget // params.n))
        emitted: list[list[int]] = [[] for _ in range(params.n)]
        ended = 0
        for token in self.history:
            emitted[token.choice].append(token.id)
            ended += token.finish_reason is not None
        if ended == params.n:
            return None
        if self.history:  # the prompt was sent with the first token
            params = msgspec.structs.replace(params, echo=False, prompt_logprobs=None, return_token_ids=False)
        return EngineRequest(
            self.run_id,
            self.prompt,
            params,
            resumed=tuple(tuple(ids) for ids in emitted),
            priority=request.priority,
            tenant=request.tenant,
            due=due_at(request),
            prefix_salt=prefix_salt,
            work=request.work if isinstance(request.work, EncoderWork) else None,
            lengths=self.lengths,
            second_starts=self.second_starts,
            separates_reasoning=request.messages is not None,
            bad_words=bad_words,
            prompt_param=request.prompt_param,
        )

    def append(self, outputs: list[EngineOutput], now: float) -> Append:
        """Return one append of all `outputs`, in order, with the terminal event if they end the request.

        Args:
            now: by time.monotonic.
        """
        last = outputs[-1]
        tokens, waits = last.tokens, last.waits
        if len(outputs) > 1:
            tokens = tuple([token for output in outputs for token in output.tokens])
            waits = next((output.waits for output in reversed(outputs) if output.waits), None)
        seq = self.next_seq
        event = TokenEvent(seq, tokens) if seq else self._first_event(outputs, tokens)
        self.next_seq = seq + len(tokens)
        self.reasoning_tokens += count_reasoning(tokens)
        if last.finished:
            event = msgspec.structs.replace(event, terminal=self._terminal(last))
        ids = () if seq or last.finished else self._ids_to_record(event)
        marks = waits is not None or self.mark is None or now - self.marked_at >= MARK_INTERVAL_S
        mark = self._new_mark(outputs[0], waits, now) if marks else None
        return Append(self.lease, event, len(self.prompt), ids, mark)

    def _new_mark(self, first: EngineOutput, waits: EngineWaits | None, now: float) -> RunMark:
        """Return the mark of this run, which is sent first, after a preemption, and once in MARK_INTERVAL_S."""
        logged = self.mark
        self.waits, self.marked_at = waits or self.waits, now
        waits = self.waits
        self.mark = RunMark(
            first.cached_tokens if logged is None else logged.cached_tokens,
            round(self.prepared, 6),
            round(waits.waited, 6),
            waits.preemptions,
            round(waits.preempted, 6),
            round(waits.preempted, 6) if logged is None else logged.preempted_early,
        )
        return self.mark

    def _first_event(self, outputs: list[EngineOutput], tokens: tuple[Token, ...]) -> TokenEvent:
        """Return the event with the first tokens, with the counts of the prompt and its echo, if there is one."""
        self.prompt_usage = PromptUsage(len(self.prompt), outputs[0].cached_tokens)
        prompt = next((output.prompt for output in outputs if output.prompt), ())
        begun = outputs[0].tokens or outputs[0].prompt
        return TokenEvent(0, tokens, None, prompt, self.prompt_usage if begun else None)

    def _ids_to_record(self, event: TokenEvent) -> tuple[int, ...]:
        """Return the prompt's ids for the first event, if it has tokens of a chat or a changed prompt.

        The next worker continues from them: a chat template may contain the time, and the next worker may have
        another version of it, or another context to truncate to.
        """
        if not event.tokens:
            return ()
        request = self.delivery.request
        rendered = request.messages is not None or request.prompt_options != DEFAULT_PROMPT_OPTIONS
        return self.prompt if rendered else ()

    def _terminal(self, last: EngineOutput) -> Terminal:
        error = last.error
        state = RequestState.FAILED if error else RequestState.COMPLETED
        cached = self.prompt_usage.cached if self.prompt_usage else 0
        usage = last.usage or Usage(len(self.prompt), self.next_seq, self.reasoning_tokens, cached)
        waited = self.lease.started_at - self.delivery.request.created_at
        info = ErrorInfo.from_error(error) if error else None
        params = self.delivery.request.params
        empty = params.n if params.max_tokens == 0 and error is None else 0
        return Terminal(state, usage, info, waited, last.result, empty)


def group_by_run(outputs: list[EngineOutput]) -> dict[str, list[EngineOutput]]:
    """Group outputs by the run that they belong to, each group in order."""
    grouped = {output.job_id: [output] for output in outputs}
    if len(grouped) == len(outputs):  # of one step
        return grouped
    grouped = {}
    for output in outputs:
        run_id = output.job_id
        if run_id in grouped:
            grouped[run_id].append(output)
        else:
            grouped[run_id] = [output]
    return grouped
