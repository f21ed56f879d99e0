"""The main cause of a request's time, in one sentence."""

from __future__ import annotations

from shared.timeline.phases import workers_of
from shared.timeline.types import Event, QueueSnapshot, Timeline


def summary_of(timeline: Timeline) -> str:
    part = getattr(timeline.totals, timeline.cause)
    share = f" ({100 * part / timeline.seconds:.0f} %)" if timeline.seconds > 0 else ""
    so_far = "" if timeline.state in ("completed", "failed", "cancelled") else " so far"
    if timeline.cause == "pause":
        return f"The queue was paused for {duration(part)} of {duration(timeline.seconds)}{so_far}{share}."
    workers = workers_of(timeline.phases, timeline.cause)
    on = f" on {len(workers)} workers" if len(workers) > 1 else f" on worker {workers[0]}" if workers else ""
    lead = f"{duration(part)} of {duration(timeline.seconds)}{so_far}{share} went into"
    return f"{lead} {_what(timeline, on)}."


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"


def _what(timeline: Timeline, on: str) -> str:
    match timeline.cause:
        case "intake":
            text = "the way into the queue, through Kafka if requests are written there first"
        case "queue":
            text = f"waiting in the queue{_queue(timeline)}"
        case "preparation":
            text = f"preparing the request{on}: chat template, tokenizing and grammar"
        case "engine":
            text = f"waiting{on} for a seat or cache blocks, beside the requests that it ran already"
        case "prefill":
            text = f"computing {_prompt(timeline)}{on} before the first token"
        case "decode":
            rate = f" at {timeline.tokens_per_s:.1f} tokens per second" if timeline.tokens_per_s else ""
            text = f"writing {_count(timeline.completion_tokens, 'token')}{rate}{on}"
        case "preemption":
            text = f"{_count(timeline.preemptions, 'preemption')}{on}, which gave its place to other requests"
        case "takeover":
            text = _takeover(timeline.events)
        case "compute":
            text = f"computing the result{on}"
    return text


def _prompt(timeline: Timeline) -> str:
    if not timeline.prompt_tokens:
        return "the prompt"
    cached = timeline.cached_tokens or "none"
    return f"a prompt of {_count(timeline.prompt_tokens, 'token')} ({cached} from the prefix cache)"


def _queue(timeline: Timeline) -> str:
    if not timeline.positions:
        return ""
    first = next((each for each in timeline.queue if each.at == timeline.positions[0].at), None)
    if first is None:
        return ", where nothing else waited: no worker had room"
    place = f"position {first.position} of class {timeline.priority}"
    now = f", and is at position {timeline.queue[-1].position} now" if len(timeline.queue) > 1 else ""
    return f", which it entered at {place}, beside {_beside(first)}{now}"


def _beside(found: QueueSnapshot) -> str:
    counts = found.requests
    total = counts.interactive + counts.standard + counts.batch
    by_class = {"interactive": counts.interactive, "standard": counts.standard, "batch": counts.batch}
    classes = [f"{count} {name}" for name, count in by_class.items() if count]
    own = f", {found.own_requests} of its own tenant" if found.own_requests else ""
    return f"{_count(total, 'waiting request')} ({', '.join(classes)}{own})"


def _takeover(events: list[Event]) -> str:
    """Name the workers of the last change; of several, their number."""
    ends = [event for event in events if event.name in ("worker_lost", "handed_over")]
    if len(ends) > 1:
        last = f"the last from {ends[-1].worker} after {_count(ends[-1].tokens, 'token')}"
        return f"{len(ends)} changes of worker, {last}"
    [end] = ends
    how = "was lost" if end.name == "worker_lost" else "handed it over"
    following = next((event.worker for event in events if event.name == "taken_over"), None)
    return f"a change of worker: {end.worker} {how} after {_count(end.tokens, 'token')}, and {following} continued"


def _count(number: int | None, noun: str) -> str:
    return f"{number or 0} {noun}{'' if number == 1 else 's'}"
