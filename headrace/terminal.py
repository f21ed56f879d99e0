"""Printing of texts that a server, or a record, may have brought: they must not control the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from shared.runtime.control_characters import visible


def print_text(text: str, end: str = "\n") -> None:
    """Print a text that a server may have sent, without buffering."""
    print(visible(text), end=end, flush=True)


class Terminal(Console):
    """Console that prints no control characters but its own; see `visible`."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.is_control else segment._replace(text=visible(segment.text))
