"""The outcomes of a comparison as an SVG plot, made from string templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from headrace.sim.comparison import Comparison
from headrace.sim.outcome import Sample

WIDTH, PANEL, LEFT, RIGHT, TOP = 960, 190, 60, 20, 60
COLOURS = ("#9a9a9a", "#c1666b", "#2a6f97", "#6a4c93", "#2a9d5c")
POINTS = 480  # of a line; each shows the maximum of its time
PANELS: tuple[tuple[str, Callable[[Sample], float]], ...] = (
    ("workers", lambda sample: sample.workers),
    ("requests waiting", lambda sample: sample.waiting),
    ("age of the oldest waiting request, s", lambda sample: sample.oldest_age),
)


def svg(found: Comparison) -> str:
    """Return a plot over the time, with a panel for each of PANELS and a line for each policy."""
    names = list(found.outcomes)
    end = max((outcome.seconds for outcome in found.outcomes.values()), default=0.0) or 1.0
    parts = [_legend(names)]
    for number, (title, value) in enumerate(PANELS):
        lines = [_maxima(found.outcomes[name].samples, end, value) for name in names]
        parts.append(_panel(title, TOP + number * PANEL, lines, end))
    height = TOP + len(PANELS) * PANEL + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12" role="img" aria-label="Autoscalers compared">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _legend(names: Sequence[str]) -> str:
    return "".join(
        f'<rect x="{LEFT + 150 * number}" y="18" width="18" height="4" fill="{COLOURS[number % len(COLOURS)]}"/>'
        f'<text x="{LEFT + 150 * number + 24}" y="24">{escape(name)}</text>'
        for number, name in enumerate(names)
    )


def _maxima(samples: Sequence[Sample], end: float, value: Callable[[Sample], float]) -> list[float]:
    found = [0.0] * POINTS
    for sample in samples:
        at = min(POINTS - 1, int(sample.at / end * POINTS))
        found[at] = max(found[at], value(sample))
    return found


def _panel(title: str, top: int, lines: Sequence[Sequence[float]], end: float) -> str:
    most = max((max(line) for line in lines), default=0.0) or 1.0
    width, height = WIDTH - LEFT - RIGHT, PANEL - 50
    base = top + height + 10
    parts = [
        f'<text x="{LEFT}" y="{top}" font-weight="bold">{escape(title)}</text>',
        f'<text x="{LEFT - 6}" y="{top + 20}" text-anchor="end">{most:,.0f}</text>',
        f'<text x="{LEFT - 6}" y="{base}" text-anchor="end">0</text>',
        f'<path d="M{LEFT} {base}H{LEFT + width}" stroke="#555555" fill="none"/>',
    ]
    for part in range(5):
        at = end * part / 4
        parts.append(
            f'<text x="{LEFT + width * part / 4:.0f}" y="{base + 16}" text-anchor="middle">'
            f"{int(at // 3600)}:{int(at % 3600 // 60):02d}</text>"
        )
    for number, line in enumerate(lines):
        points = " ".join(
            f"{LEFT + width * index / (POINTS - 1):.1f},{base - height * value / most:.1f}"
            for index, value in enumerate(line)
        )
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
    return "\n".join(parts)
