"""`headrace top`: models, queues, tenants, workers and recent requests, live in the terminal."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from headrace.cli.administration.queues import percent, seconds
from headrace.cli.options import AdminUrl, ApiKey, Json, client_at, plain_table, print_json
from headrace.terminal import Terminal
from shared.errors import Unavailable

if TYPE_CHECKING:
    from headrace.client import HeadraceClient

DEFAULT_INTERVAL_S = 2.0
PATIENCE_S = 0.0  # for one look; a failed one is shown, and the next follows
QUIT_KEYS = frozenset(b"qQ\x03")
ESCAPE = b"\x1b"  # alone; with more, it is an arrow or another key
MAX_TYPED = 1024  # bytes that are read at a time
SECTIONS = 5  # tables of the view
CHROME_LINES = 2 + 2 * SECTIONS  # the heading and an empty line; of each table its heading and a last line
STYLES = {"paused": "yellow", "draining": "yellow", "hung": "red", "failed": "red", "ready": "green"}
WIDE = 120  # columns from which more of each row is shown


def top(
    url: AdminUrl,
    api_key: ApiKey = None,
    interval: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds between looks.")] = DEFAULT_INTERVAL_S,
    once: Annotated[bool, typer.Option("--once", help="Print one view, and exit.")] = False,
    as_json: Json = False,
) -> None:
    """Show models, queues, tenants, workers and recent requests, live; q quits."""
    console = Terminal()
    if as_json or once or not (console.is_terminal and sys.stdin.isatty()):
        with client_at(url, api_key) as client:
            found = client.administer("GET", "/admin/overview")
        if as_json:
            print_json(found)
        else:
            console.print(view_of(found, console.width, None))
        return
    with client_at(url, api_key, PATIENCE_S) as client:
        _live(console, client, url, interval)


def _live(console: Console, client: HeadraceClient, url: str, interval: float) -> None:
    from rich.live import Live

    found, trouble = None, f"connecting to {url}"
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                found, trouble = client.administer("GET", "/admin/overview"), ""
            except Unavailable as error:
                trouble = f"trying again every {interval:g} s: {error.message}"
            live.update(_screen(found, trouble, console), refresh=True)
            if pressed(interval):
                return


def _screen(found: dict[str, Any] | None, trouble: str, console: Console) -> RenderableType:
    """Return the last view that was received, under the reason why there is no newer one."""
    warning = [Text(trouble, style="bold red", no_wrap=True, overflow="ellipsis")] if trouble else []
    if found is None:
        return Group(*warning)
    return Group(*warning, view_of(found, console.width, console.height - len(warning)))


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Read single keys from the terminal; yield a function that waits for a quit key, for some seconds."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(timeout: float) -> bool:
        until = time.monotonic() + timeout
        while (left := until - time.monotonic()) > 0:
            if select.select([descriptor], [], [], left)[0]:
                typed = os.read(descriptor, MAX_TYPED)
                if not typed or typed == ESCAPE or QUIT_KEYS & set(typed):
                    return True
        return False

    try:
        tty.setcbreak(descriptor)
        yield pressed
    except KeyboardInterrupt:
        pass
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def view_of(found: dict[str, Any], width: int, height: int | None) -> RenderableType:
    """Return the view of an overview; with a height in lines, each table shows as many rows as fit."""
    wide = width >= WIDE
    rows: list[list[Any]] = [
        found["models"],
        found["queues"],
        [(queue["model"], tenant) for queue in found["queues"] for tenant in queue["tenants"]],
        found["workers"],
        found["recent"],
    ]
    most = _allotted([len(each) for each in rows], None if height is None else height - CHROME_LINES)
    makers: tuple[Callable[[Any, bool, float], Table], ...] = (_models, _queues, _tenants, _workers, _requests)
    tables: list[RenderableType] = [Text("")]
    for make, part, count in zip(makers, rows, most, strict=True):
        hidden = len(part) - count
        tables += [make(part[:count], wide, found["at"]), Text(f"  … {hidden} more" if hidden else "", style="dim")]
    return Group(_heading(found), *tables)


def _allotted(wanted: list[int], lines: int | None) -> list[int]:
    """Share the lines of the terminal among tables: one row after the other to each that wants more."""
    if lines is None:
        return wanted
    given, left = [0] * len(wanted), max(lines, 0)
    while left and given != wanted:
        for i, want in enumerate(wanted):
            if given[i] < want and left:
                given[i], left = given[i] + 1, left - 1
    return given


def _heading(found: dict[str, Any]) -> Text:
    waiting = sum(queue["waiting"] for queue in found["queues"])
    held = sum(queue["held"] for queue in found["queues"])
    ready = sum(worker["state"] == "ready" for worker in found["workers"])
    at = datetime.fromtimestamp(found["at"]).astimezone().strftime("%H:%M:%S")
    workers = f"{ready} of {len(found['workers'])} workers ready"
    text = f"headrace {at}  {workers}  {waiting} waiting  {held} running  q quits"
    return Text(text, style="bold", no_wrap=True, overflow="ellipsis")


def _table(*columns: str) -> Table:
    table = plain_table()
    for name in columns:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    return table


def _state(state: str) -> str:
    return f"[{STYLES[state]}]{state}[/]" if state in STYLES else escape(state)


def _models(models: list[dict[str, Any]], wide: bool, at: float) -> Table:
    table = _table("MODEL", "STATE", "READY", *(["TASK"] if wide else []))
    for each in models:
        state = "asleep" if each["asleep"] else "ready" if each["ready"] else "not ready"
        more = [each["task"] or ""] if wide else []
        table.add_row(escape(each["name"]), _state(state), f"{each['ready']}/{each['workers']}", *more)
    return table


def _queues(queues: list[dict[str, Any]], wide: bool, at: float) -> Table:
    counts = ("WAITING", "RUNNING") if wide else ("WAIT", "RUN")
    table = _table("QUEUE", "STATE", *counts, "OLDEST", "INTERACTIVE", "STANDARD", "BATCH")
    for each in queues:
        shares = [_share(one, " of " if wide else "/") for one in each["classes"]]
        row = (str(each["waiting"]), str(each["held"]), seconds(each["oldest_age"]))
        table.add_row(escape(each["model"]), _state(each["state"]), *row, *shares)
    return table


def _share(row: dict[str, Any], between: str = " of ") -> str:
    """Return what was served, and what should have been."""
    return f"{percent(row['share'])}{between}{percent(row['weight_share'])}"


def _tenants(tenants: list[tuple[str, dict[str, Any]]], wide: bool, at: float) -> Table:
    table = _table("TENANT", "QUEUE", "STATE", "WAITING", "RUNNING", "OLDEST", "SHARE")
    for model, each in tenants:
        held = "-" if each["held"] is None else str(each["held"])
        counts = (str(each["waiting"]), held, seconds(each["oldest_age"]))
        table.add_row(escape(each["tenant"]), escape(model), _state(each["state"]), *counts, _share(each))
    return table


def _workers(workers: list[dict[str, Any]], wide: bool, at: float) -> Table:
    table = _table("WORKER", "MODEL", "STATE", "SEATS", "KV", "TOKENS/S", *(["HEARTBEAT", "FAULT"] if wide else []))
    for each in workers:
        seats = f"{each['active_requests']}/{each['seats']}"
        age = "" if each["heartbeat_age"] is None else seconds(each["heartbeat_age"])
        more = [age, escape(each["fault"])] if wide else []
        name = escape(each["id"] if wide else each["id"][-24:])
        speed = f"{each['tokens_per_s']:.0f}"
        table.add_row(
            name, escape(each["model"]), _state(each["state"]), seats, percent(each["kv_use"]), speed, *more
        )
    return table


def _requests(requests: list[dict[str, Any]], wide: bool, at: float) -> Table:
    table = _table("REQUEST", "MODEL", "TENANT", "STATE", "AGE", "TOKENS", *(["CLASS", "FINISH"] if wide else []))
    for each in requests:
        tokens = f"{each['prompt_tokens']}+{each['completion_tokens']}"
        more = [escape(each["priority"]), escape(each["finish"])] if wide else []
        name = escape(each["id"] if wide else each["id"][:16])
        age = seconds(max(0.0, at - each["created_at"]))
        owner = (escape(each["model"]), escape(each["tenant"]))
        table.add_row(name, *owner, _state(each["state"]), age, tokens, *more)
    return table
