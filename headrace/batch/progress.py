"""Progress of a batch run: its counts, and a progress bar on a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from headrace.batch.output_record import Record


@dataclass
class RunCounts:
    """Counts of one run. `skipped` lines were finished by an earlier run, `skipped_failed` of them as errors."""

    lines: int
    skipped: int = 0
    skipped_failed: int = 0
    done: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, record: Record) -> None:
        prompt, completion = record.usage
        self.done += 1
        self.failed += record.failed
        self.prompt_tokens += prompt
        self.completion_tokens += completion

    def summary(self) -> dict[str, Any]:
        seconds = time.monotonic() - self.started
        return {
            "lines": self.lines,
            "done": self.skipped + self.done,
            "failed": self.skipped_failed + self.failed,
            "skipped": self.skipped,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(self.completion_tokens / seconds, 1) if seconds else 0.0,
        }


class _Bar(Progress):
    """Progress bar that reads the counts whenever it is drawn, so that the run never waits for the terminal."""

    def __init__(self, counts: RunCounts, console: Console) -> None:
        self._counts = counts
        self._task: TaskID | None = None
        super().__init__(
            BarColumn(None),
            MofNCompleteColumn(),
            TextColumn("[red]{task.fields[failed]} failed[/]  {task.fields[rate]:.0f} tokens/s  ETA"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self.add_task("", total=counts.lines, completed=counts.skipped, failed=0, rate=0.0)

    def get_renderables(self) -> Iterator[Any]:
        if self._task is not None:
            now = self._counts.summary()
            self.update(self._task, completed=now["done"], failed=now["failed"], rate=now["tokens_per_second"])
        yield from super().get_renderables()


@contextmanager
def progress_bar(counts: RunCounts, console: Console) -> Iterator[None]:
    """Show a progress bar while the body runs, if the console is a terminal."""
    if not console.is_terminal:
        yield
        return
    with _Bar(counts, console):
        yield
