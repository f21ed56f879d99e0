"""Results of `headrace bench routing` as tables, and as an SVG plot made from string templates."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from html import escape

from rich.table import Table

from headrace.bench.routing.clients import Throughput
from headrace.bench.routing.comparison import BASE, WORKERS, Routing

WIDTH, BAR, GAP, LEFT, RIGHT, HEAD = 640, 18, 5, 170, 130, 34
COLOUR, BASE_COLOUR, LINE = "#2a6f97", "#adb5bd", "#6c757d"


def tables(found: Routing) -> Iterator[Table]:
    """Yield the tables: tokens/s, times to the first token, and the targets."""
    loads = list(found.runs)
    seeds = len(next(iter(found.runs[loads[0]].values())))
    over = f"medians over {seeds} seeds" if seeds > 1 else "one seed"
    rates = Table("tokens/s", *loads, "cached", title=f"{WORKERS} workers, {over}", title_justify="left")
    waits = Table("first token, p50 / p95", *loads)
    costs = Table("added to a call of the queue", "publish", "pull")
    for policy in found.runs[loads[0]]:
        runs = {load: found.runs[load][policy] for load in loads}
        cached = _median(runs[loads[-1]], lambda run: run.cached)
        rates.add_row(policy, *(_rate(found, load, policy) for load in loads), f"{cached:.0%}")
        waits.add_row(policy, *(_wait(runs[load]) for load in loads))
    yield rates
    yield waits
    for policy, added in found.added.items():
        costs.add_row(policy, f"{added.publish * 1000:.3f} ms", f"{added.pull * 1000:.3f} ms")
    if found.added:
        yield costs
    yield _targets(found)


def _rate(found: Routing, load: str, policy: str) -> str:
    return f"{_median(found.runs[load][policy], _tokens_per_s):,.0f} {found.gain(load, policy):.2f} ×"


def _wait(runs: Sequence[Throughput]) -> str:
    p50, p95 = (_median(runs, get) for get in (lambda run: run.first_token.p50, lambda run: run.first_token.p95))
    return f"{p50 * 1000:,.0f} / {p95 * 1000:,.0f} ms"


def _targets(found: Routing) -> Table:
    table = Table("measure", "target", "found", caption=f"other processes used {found.foreign:.0%} of the cores")
    multi_turn, uniform = found.runs["multi-turn"], found.runs["uniform"]
    if {"prefix-aware", "round-robin"} <= multi_turn.keys():
        gain = found.gain("multi-turn", "prefix-aware", "round-robin")
        table.add_row("prefix-aware to round-robin, multi-turn", "≥ 1.5 ×", f"{gain:.2f} ×")
    worst = min(uniform, key=lambda policy: found.gain("uniform", policy))
    table.add_row(f"slowest policy on uniform: {worst}", "≥ 0.95 ×", f"{found.gain('uniform', worst):.3f} ×")
    if found.moved:
        most = 1 / (WORKERS + 1) + 0.05
        table.add_row(
            f"sessions moved when worker {WORKERS + 1} joins",
            f"≤ {most:.0%}",
            f"{statistics.median(found.moved):.1%}",
        )
    for kind, ratios in found.ratios.items():
        ratio = statistics.median(ratios)
        table.add_row(f"requests of workers 1 : 3, weights {kind}", "1 : 2.7–3.3", f"1 : {ratio:.2f}")
    if found.added:
        slowest = max(found.added, key=lambda policy: found.added[policy].pull)
        table.add_row(f"added to a pull: {slowest}", "≤ 0.2 ms", f"{found.added[slowest].pull * 1000:.3f} ms")
    table.add_row("memory of an idle API", "≤ 150 MiB", f"{found.api_mib:.0f} MiB")
    return table


def _median(runs: Sequence[Throughput], get: Callable[[Throughput], float]) -> float:
    return statistics.median(map(get, runs))


def _tokens_per_s(run: Throughput) -> float:
    return run.tokens_per_s


def svg(found: Routing) -> str:
    """Return a plot with a panel for each load: a bar for each policy, and a line at the tokens/s of `pull`."""
    panels, top = [], 8
    for load, runs in found.runs.items():
        panels.append(_panel(found, load, top))
        top += HEAD + len(runs) * (BAR + GAP) + 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" font-family="sans-serif" '
        f'font-size="13" role="img" aria-label="Tokens per second of each routing policy on three loads">\n'
        f'<rect width="{WIDTH}" height="{top}" fill="#ffffff"/>\n' + "\n".join(panels) + "\n</svg>\n"
    )


def _panel(found: Routing, load: str, top: int) -> str:
    rates = {policy: _median(runs, _tokens_per_s) for policy, runs in found.runs[load].items()}
    scale = (WIDTH - LEFT - RIGHT) / (max(rates.values()) or 1.0)
    first, line = top + HEAD, LEFT + rates[BASE] * scale
    parts = [
        f'<text x="8" y="{top + 18}" font-weight="bold">{escape(load)}: tokens/s</text>',
        f'<line x1="{line:.1f}" y1="{first - GAP}" x2="{line:.1f}" y2="{first + len(rates) * (BAR + GAP)}" '
        f'stroke="{LINE}" stroke-dasharray="3 3"/>',
    ]
    for number, (policy, rate) in enumerate(rates.items()):
        parts.append(_bar(policy, rate, found.gain(load, policy), scale, first + number * (BAR + GAP)))
    return "\n".join(parts)


def _bar(policy: str, rate: float, gain: float, scale: float, top: int) -> str:
    base = top + BAR - 5
    return (
        f'<text x="{LEFT - 8}" y="{base}" text-anchor="end">{escape(policy)}</text>'
        f'<rect x="{LEFT}" y="{top}" width="{max(1.0, rate * scale):.1f}" height="{BAR}" '
        f'fill="{BASE_COLOUR if policy == BASE else COLOUR}"/>'
        f'<text x="{WIDTH - 8}" y="{base}" text-anchor="end">{rate:,.0f} ({gain:.2f} ×)</text>'
    )
