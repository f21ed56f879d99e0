"""Progress bar of a batch run."""

from __future__ import annotations

import io

from rich.console import Console

from headrace.batch.input_file import Line
from headrace.batch.output_record import Record
from headrace.batch.progress import RunCounts, progress_bar
from shared.errors import InvalidRequest


def test_only_a_terminal_shows_a_progress_bar() -> None:
    """Given a run resumed at 7 of 10 lines, the bar follows it on a terminal, and a file stays empty."""
    counts, terminal = RunCounts(10, skipped=7, skipped_failed=1), io.StringIO()
    line = Line(8, "a")
    body = {"id": "chatcmpl-1", "usage": {"prompt_tokens": 4, "completion_tokens": 5}}
    with progress_bar(counts, Console(file=terminal, force_terminal=True, width=100)):
        counts.add(Record.from_completion("r", line, body))
        counts.add(Record.from_bad_line("r", line, InvalidRequest("no")))
    assert "7/10" in terminal.getvalue()
    assert "9/10" in terminal.getvalue()
    assert "2 failed" in terminal.getvalue()
    assert "tokens/s" in terminal.getvalue()
    summary = counts.summary()
    assert (summary["done"], summary["failed"], summary["completion_tokens"]) == (9, 2, 5)
    file = io.StringIO()
    with progress_bar(counts, Console(file=file)):
        pass
    assert file.getvalue() == ""
