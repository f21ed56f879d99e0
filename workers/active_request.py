"""A request while a worker runs it: its lease, its prompt, and the seq of its next token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

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
from shared.validation.token_estimate import token_estimate
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
        token_estimate: see `shared.validation.token_estimate`.
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
    token_estimate: int = field(init=False)
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
        self.token_estimate = token_estimate(self.delivery.request)
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

    def append(self, output: EngineOutput, now: float) -> Append:
        """Return the append of an output, with the terminal event if it ends the request.

        Args:
            now: by time.monotonic.
        """
        tokens, seq = output.tokens, self.next_seq
        event = TokenEvent(seq, tokens) if seq else self._first_event(output)
        self.next_seq = seq + len(tokens)
        plain = seq > 0 and not output.finished
        for token in tokens:
            if token.is_reasoning:
                self.reasoning_tokens += 1
            if token.finish_reason is not None:
                plain = False
        if output.finished:
            event = msgspec.structs.replace(event, terminal=self._terminal(output))
        ids = () if seq or output.finished else self._ids_to_record(event)
        if output.waits is not None or self.mark is None or now - self.marked_at >= MARK_INTERVAL_S:
            return Append(self.lease, event, len(self.prompt), ids, self._new_mark(output, now))
        return Append(self.lease, event, len(self.prompt), ids, plain=plain)

    def _new_mark(self, output: EngineOutput, now: float) -> RunMark:
        """Return the mark of this run, which is sent first, after a preemption, and once in MARK_INTERVAL_S."""
        logged = self.mark
        self.waits, self.marked_at = output.waits or self.waits, now
        waits = self.waits
        self.mark = RunMark(
            output.cached_tokens if logged is None else logged.cached_tokens,
            round(self.prepared, 6),
            round(waits.waited, 6),
            waits.preemptions,
            round(waits.preempted, 6),
            round(waits.preempted, 6) if logged is None else logged.preempted_early,
        )
        return self.mark

    def _first_event(self, output: EngineOutput) -> TokenEvent:
        """Return the event with the first tokens, with the counts of the prompt and its echo, if there is one."""
        self.prompt_usage = PromptUsage(len(self.prompt), output.cached_tokens)
        begun = output.tokens or output.prompt
        return TokenEvent(0, output.tokens, None, output.prompt, self.prompt_usage if begun else None)

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


def merge_by_run(outputs: list[EngineOutput]) -> list[EngineOutput]:
    """Return one output for each run: that of its steps together."""
    if len({output.job_id for output in outputs}) == len(outputs):  # of one step
        return outputs
    grouped: dict[str, list[EngineOutput]] = {}
    for output in outputs:
        grouped.setdefault(output.job_id, []).append(output)
    return [found[0] if len(found) == 1 else _merged(found) for found in grouped.values()]


def _merged(outputs: list[EngineOutput]) -> EngineOutput:
    """Return the output of successive steps of one run."""
    return msgspec.structs.replace(
        outputs[-1],
        tokens=tuple(token for output in outputs for token in output.tokens),
        prompt=next((output.prompt for output in outputs if output.prompt), ()),
        cached_tokens=max(output.cached_tokens for output in outputs),
        waits=next((output.waits for output in reversed(outputs) if output.waits), None),
    )


Written = tuple[ActiveRequest, Append]


class Gap(NamedTuple):
    """Gap before the tokens of successive appends that have the same.

    Attributes:
        series: of their requests.
        seconds: since the last tokens of each request, times its choices.
        tokens: of each append.
        appends: number of appends.
    """

    series: RequestSeries | None
    seconds: float
    tokens: int
    appends: int


@dataclass(frozen=True)
class AppendTally:
    """Appends by what they are counted as.

    Attributes:
        begun: requests with the first tokens of their run.
        gaps: gaps before the tokens of the other requests.
        ended: appends with which a choice or its request ended.
    """

    begun: list[ActiveRequest]
    gaps: list[Gap]
    ended: list[Written]

    @classmethod
    def take(cls, written: Iterable[Written], now: float) -> AppendTally:
        """Tally appends that were written at `now`, by time.monotonic, and note the time in their requests."""
        begun: list[ActiveRequest] = []
        ended: list[Written] = []
        continued: list[tuple[RequestSeries | None, float, int, int]] = []
        for active, append in written:
            if not append.plain and append.ends:
                ended.append((active, append))
            if count := len(append.event.tokens):
                last, active.last_token_at = active.last_token_at, now
                if last is None:
                    begun.append(active)
                else:
                    continued.append((active.series, last, active.choices, count))
        gaps = [
            Gap(series, (now - last) * choices, count, len(list(alike)))
            for (series, last, choices, count), alike in groupby(continued)
        ]
        return cls(begun, gaps, ended)
