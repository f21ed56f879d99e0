"""Results of `headrace bench batching` as tables, and as an SVG plot made from string templates."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from html import escape

from rich.table import Table

from headrace.bench.engine.batching import (
    CONCURRENCY,
    LONG_PROMPT_TOKENS,
    PREFIX_REQUESTS,
    PREFIX_TOKENS,
    STREAMS,
    WAITING_SEQUENCES,
    Batching,
)
from headrace.bench.harness.report import Report

FIGURES: tuple[tuple[str, str, Callable[[Report], float]], ...] = (
    ("output tokens/s", "", lambda report: report.output_tokens_per_second),
    ("first token p50", "s", lambda report: report.ttft.p50),
    ("first token p99", "s", lambda report: report.ttft.p99),
    ("between tokens p99", "s", lambda report: report.inter_token.p99),
)
WIDTH, PANEL, BAR, LEFT = 640, 120, 22, 110
COLOURS = ("#2a6f97", "#a98467", "#adb5bd")


def tables(found: Batching) -> Iterator[Table]:
    if found.policies:
        table = Table("policy", *(name for name, _, _ in FIGURES), "continuous gains", title="On the mix")
        for policy in found.policies:
            gain = "" if policy == "continuous" else f"{found.gain(policy):.2f} ×"
            table.add_row(policy, *(_text(value, unit) for value, unit in medians(found, policy)), gain)
        yield table
    names = {
        "stall": f"p99 between tokens of {STREAMS} streams; prompt of {LONG_PROMPT_TOKENS}, budget {found.budget}",
        "prefix": f"requests/s of {PREFIX_REQUESTS} prompts with {PREFIX_TOKENS} tokens in common; prefix cache",
        "waiting": f"scheduler step; {WAITING_SEQUENCES[0]:,} and {WAITING_SEQUENCES[1]:,} waiting requests",
        "steps": f"engine step; 1 and {CONCURRENCY} streams",
    }
    rows = [(name, pair) for key, name in names.items() if (pair := getattr(found, key)) is not None]
    if rows:
        table = Table("medians", "without", "with", "ratio")
        for name, pair in rows:
            values = (statistics.median(pair.without), statistics.median(pair.with_it))
            table.add_row(name, *(f"{value:.3g}" for value in values), f"{pair.ratio:.3f}")
        yield table


def medians(found: Batching, policy: str) -> list[tuple[float, str]]:
    """Return the median over the runs of each of FIGURES, with its unit."""
    return [(statistics.median(map(get, found.policies[policy])), unit) for _, unit, get in FIGURES]


def svg(found: Batching) -> str:
    """Return a plot with a panel for each figure and a bar for each policy."""
    policies = list(found.policies)
    values = [medians(found, policy) for policy in policies]
    panels = []
    for index, (name, _, _) in enumerate(FIGURES):
        top = 40 + index * PANEL
        panels.append(f'<text x="8" y="{top}" font-weight="bold">{escape(name)}</text>')
        most = max(row[index][0] for row in values) or 1.0
        for number, policy in enumerate(policies):
            value, unit = values[number][index]
            panels.append(_bar(policy, value / most, _text(value, unit), top + 8 + number * (BAR + 4), number))
    height = 40 + len(FIGURES) * PANEL
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="13" role="img" aria-label="Batching policies compared">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n' + "\n".join(panels) + "\n</svg>\n"
    )


def _bar(label: str, share: float, text: str, top: int, number: int) -> str:
    width = max(1.0, share * (WIDTH - LEFT - 90))
    base = top + BAR - 7
    return (
        f'<text x="{LEFT - 8}" y="{base}" text-anchor="end">{escape(label)}</text>'
        f'<rect x="{LEFT}" y="{top}" width="{width:.1f}" height="{BAR}" fill="{COLOURS[number]}"/>'
        f'<text x="{LEFT + width + 6:.1f}" y="{base}">{escape(text)}</text>'
    )


def _text(value: float, unit: str) -> str:
    return f"{value:.2f} {unit}" if unit else f"{value:.1f}"
