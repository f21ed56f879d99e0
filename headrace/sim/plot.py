"""The outcomes of a comparison as an SVG plot, made from string templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from headrace.bench.harness.report import percentile
from headrace.sim.comparison import Comparison
from headrace.sim.outcome import Outcome, Sample

WIDTH, PANEL, LEFT, RIGHT, TOP = 960, 190, 60, 20, 60
COLOURS = ("#9a9a9a", "#c1666b", "#2a6f97", "#6a4c93", "#2a9d5c")
SHORT_S = 7200.0
POINTS = 480  # of a line; each shows the maximum of its time
PANELS: tuple[tuple[str, Callable[[Sample], float]], ...] = (
    ("workers", lambda sample: sample.workers),
    ("requests waiting", lambda sample: sample.waiting),
    ("age of the oldest waiting request, s", lambda sample: sample.oldest_age),
)
BARS: tuple[tuple[str, str, Callable[[Outcome], float]], ...] = (
    ("cost, worker hours", "{:.3g}", lambda outcome: outcome.worker_seconds / 3600),
    ("first token, p99, s", "{:.2f}", lambda outcome: percentile(sorted(outcome.first_tokens), 0.99)),
    ("whole answer, p99, s", "{:.2f}", lambda outcome: percentile(sorted(outcome.totals), 0.99)),
)
BARS_WIDTH, BARS_HEIGHT, BAR = 290, 110, 16


def svg(found: Comparison) -> str:
    """Return a plot over the time, with a panel for each of PANELS, and bars for each of BARS, by policy."""
    names = list(found.outcomes)
    end = max((outcome.seconds for outcome in found.outcomes.values()), default=0.0) or 1.0
    parts = [_legend(names)]
    for number, (title, value) in enumerate(PANELS):
        lines = [_maxima(found.outcomes[name].samples, end, value) for name in names]
        parts.append(_panel(title, TOP + number * PANEL, lines, end))
    top = TOP + len(PANELS) * PANEL
    for number, (title, form, figure) in enumerate(BARS):
        values = [figure(found.outcomes[name]) for name in names]
        parts.append(_bars(title, form, LEFT + number * BARS_WIDTH, top, values))
    height = top + BARS_HEIGHT + 10
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
    """Return the maximum for each point of a line. Without a sample, it is the one before, or the first."""
    found: list[float | None] = [None] * POINTS
    for sample in samples:
        at = min(POINTS - 1, int(sample.at / end * POINTS))
        found[at] = max(found[at] or 0.0, value(sample))
    last = next((each for each in found if each is not None), 0.0)
    return [last := last if each is None else each for each in found]


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
            f'<text x="{LEFT + width * part / 4:.0f}" y="{base + 16}" text-anchor="middle">{_clock(at, end)}</text>'
        )
    for number, line in enumerate(lines):
        points = " ".join(
            f"{LEFT + width * index / (POINTS - 1):.1f},{base - height * value / most:.1f}"
            for index, value in enumerate(line)
        )
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
    return "\n".join(parts)


def _clock(at: float, end: float) -> str:
    """Return a time as hours and minutes, in a short run as minutes and seconds."""
    units = round(at / 60 if end >= SHORT_S else at)
    return f"{units // 60}:{units % 60:02d}"


def _bars(title: str, form: str, left: int, top: int, values: Sequence[float]) -> str:
    """Return a group of horizontal bars, one for each policy in the order of the legend, with their values."""
    most = max(values, default=0.0) or 1.0
    parts = [f'<text x="{left}" y="{top}" font-weight="bold">{escape(title)}</text>']
    for number, value in enumerate(values):
        at, width = top + 10 + number * BAR, (BARS_WIDTH - 100) * value / most
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<rect x="{left}" y="{at}" width="{width:.1f}" height="{BAR - 4}" fill="{colour}"/>')
        parts.append(f'<text x="{left + width + 6:.1f}" y="{at + BAR - 6}">{form.format(value)}</text>')
    return "\n".join(parts)
