"""What a person sees of a run."""

from __future__ import annotations

import io

from rich.console import Console

from headrace.batch.input_file import Line
from headrace.batch.output_record import Record
from headrace.batch.progress import RunCounts, progress_bar
from shared.errors import InvalidRequest


def test_a_terminal_shows_what_is_done_and_nothing_else_does() -> None:
    """Given a run that goes on with 7 of 10 lines, Expect the bar to follow it, and a file to stay empty."""
    counts, told = RunCounts(10, skipped=7, skipped_failed=1), io.StringIO()
    line = Line(8, "a")
    body = {"id": "chatcmpl-1", "usage": {"prompt_tokens": 4, "completion_tokens": 5}}
    with progress_bar(counts, Console(file=told, force_terminal=True, width=100)):
        counts.add(Record.from_completion("r", line, body))
        counts.add(Record.from_bad_line("r", line, InvalidRequest("no")))
    assert "7/10" in told.getvalue()
    assert "9/10" in told.getvalue()
    assert "2 failed" in told.getvalue()
    assert "tokens/s" in told.getvalue()
    summary = counts.summary()
    assert (summary["done"], summary["failed"], summary["completion_tokens"]) == (9, 2, 5)
    file = io.StringIO()
    with progress_bar(counts, Console(file=file)):
        pass
    assert file.getvalue() == ""
