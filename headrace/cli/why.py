"""`headrace why`: where the time of a job went, as a bar and a sentence."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from headrace.cli.options import DEFAULT_URL, ApiKey, Json, Url, client_at, plain_table, print_json
from headrace.terminal import Terminal
from shared.errors import HeadraceError

MAX_BAR_CELLS = 72
PREEMPTED = "preempted"
STYLES = {
    "intake": ("white", "·"),
    "queued": ("yellow", "░"),
    "paused": ("bright_yellow", "="),
    "preparing": ("cyan", "▒"),
    "waiting": ("magenta", "░"),
    "prefill": ("blue", "▓"),
    "decode": ("green", "█"),
    "compute": ("green", "█"),
    PREEMPTED: ("bright_magenta", "▒"),
    "lost": ("red", "×"),
    "resuming": ("bright_blue", "▓"),
}  # color and sign of each phase: a bar can be read without colors too
UNKNOWN = ("white", "?")  # of a phase that a newer server has

Part = tuple[str, float, str | None]  # name, seconds, worker
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e11)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class PhaseShape(msgspec.Struct):
    """Fields of a phase that the command reads; names are texts, as a newer server may have others."""

    name: str
    start: Seconds
    end: Seconds
    worker: str | None
    preempted: Seconds


class PositionShape(msgspec.Struct):
    at: Seconds
    position: Count


class EventShape(msgspec.Struct):
    name: str
    at: Seconds
    worker: str | None = None
    position: Count | None = None
    tokens: Count | None = None
    count: Count | None = None
    seconds: Seconds | None = None
    finish: str | None = None


class TimelineShape(msgspec.Struct):
    """Fields of a timeline that the command reads."""

    summary: str
    created_at: Seconds
    seconds: Seconds
    phases: list[PhaseShape]
    positions: list[PositionShape]
    prompt_tokens: Count
    cached_tokens: Count
    completion_tokens: Count
    tokens_per_s: Seconds | None
    events: list[EventShape]


def why(
    job_id: Annotated[str, typer.Argument(help="Id of the job or of its answer.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show where the time of a job went, and the main cause."""
    with client_at(url, api_key) as client:
        found = client.timeline(job_id)
    if as_json:
        print_json(found)
        return
    check_timeline(found)
    console = Terminal(highlight=False)
    console.print(escape(found["summary"]), soft_wrap=not console.is_terminal)
    parts = parts_of(found)
    console.print()
    console.print(bar(parts, min(MAX_BAR_CELLS, console.width)))
    _print_parts(console, parts, found["seconds"])
    _print_positions(console, found)
    _print_tokens(console, found)
    _print_events(console, found)


def check_timeline(value: dict[str, Any]) -> None:
    """Raise HeadraceError if a server's answer is no timeline. Names that a newer server has are accepted."""
    try:
        msgspec.convert(value, TimelineShape)
    except msgspec.ValidationError as error:
        raise HeadraceError(f"the answer of the server is not a timeline: {error}") from error


def parts_of(timeline: dict[str, Any]) -> list[Part]:
    """Return the parts of the bar: the phases, each with the time for which it was preempted after it."""
    parts: list[Part] = []
    for phase in timeline["phases"]:
        seconds = phase["end"] - phase["start"]
        parts.append((phase["name"], max(0.0, seconds - phase["preempted"]), phase["worker"]))
        if phase["preempted"] > 0:
            parts.append((PREEMPTED, phase["preempted"], phase["worker"]))
    return parts


def bar(parts: list[Part], width: int) -> Text:
    """Return a bar of `width` cells, in which a part has cells in proportion to its seconds."""
    total, drawn, passed, text = sum(seconds for _, seconds, _ in parts), 0, 0.0, Text()
    for name, seconds, _ in parts:
        passed += seconds
        cells = round(width * passed / total) - drawn if total else 0
        color, sign = STYLES.get(name, UNKNOWN)
        text.append(sign * cells, style=color)
        drawn += cells
    return text


def _print_parts(console: Console, parts: list[Part], total: float) -> None:
    table = plain_table("", "phase", "seconds", "%", "worker")
    for name, seconds, worker in parts:
        color, sign = STYLES.get(name, UNKNOWN)
        percent = f"{100 * seconds / total:.1f}" if total else ""
        table.add_row(f"[{color}]{sign}[/]", escape(name), f"{seconds:.3f}", percent, escape(worker or ""))
    for column in table.columns[2:4]:
        column.justify = "right"
    console.print(table)


def _print_positions(console: Console, timeline: dict[str, Any]) -> None:
    """Print the positions in the queue, if there is more than the first place."""
    positions = timeline["positions"]
    if any(each["position"] > 1 for each in positions):
        steps = [f"{each['position']} after {each['at'] - timeline['created_at']:.1f} s" for each in positions]
        console.print(f"\nposition in the queue: {', '.join(steps)}", soft_wrap=not console.is_terminal)


def _print_tokens(console: Console, timeline: dict[str, Any]) -> None:
    """Print the tokens of prompt and answer, once a worker has counted them."""
    if timeline["prompt_tokens"]:
        rate = timeline["tokens_per_s"]
        written = f"{timeline['completion_tokens']} tokens" + (f", {rate:.1f} per second" if rate else "")
        prompt = f"{timeline['prompt_tokens']} tokens, {timeline['cached_tokens']} from the prefix cache"
        console.print(f"\nprompt: {prompt}; answer: {written}", soft_wrap=not console.is_terminal)


def _print_events(console: Console, timeline: dict[str, Any]) -> None:
    table = plain_table("after", "event", "")
    for event in timeline["events"]:
        after = event["at"] - timeline["created_at"]
        details = [str(event["worker"])] if event.get("worker") else []
        details += [f"position {event['position']}"] if event.get("position") else []
        details += [f"{event['tokens']} tokens"] if event.get("tokens") is not None else []
        details += [f"{event['count']} ×, {event.get('seconds') or 0.0:.3f} s"] if event.get("count") else []
        details += [str(event["finish"])] if event.get("finish") else []
        table.add_row(f"{after:.3f} s", escape(event["name"].replace("_", " ")), escape(", ".join(details)))
    table.columns[0].justify = "right"
    console.print()
    console.print(table)
