"""What a person sees of a run."""

from __future__ import annotations

import io

from rich.console import Console

from headrace.batch.input_file import Line
from headrace.batch.output_record import of_bad_line, of_completion
from headrace.batch.progress import Meter, shown
from shared.errors import InvalidRequest


def test_a_terminal_shows_what_is_done_and_nothing_else_does() -> None:
    """Given a run that goes on with 7 of 10 lines, Expect the bar to follow it, and a file to stay empty."""
    meter, told = Meter(10, skipped=7, skipped_failed=1), io.StringIO()
    line = Line(8, "a")
    body = {"id": "chatcmpl-1", "usage": {"prompt_tokens": 4, "completion_tokens": 5}}
    with shown(meter, Console(file=told, force_terminal=True, width=100)):
        meter.see(of_completion("r", line, body))
        meter.see(of_bad_line("r", line, InvalidRequest("no")))
    assert "7/10" in told.getvalue()
    assert "9/10" in told.getvalue()
    assert "2 failed" in told.getvalue()
    assert "tokens/s" in told.getvalue()
    summary = meter.summary()
    assert (summary["done"], summary["failed"], summary["completion_tokens"]) == (9, 2, 5)
    file = io.StringIO()
    with shown(meter, Console(file=file)):
        pass
    assert file.getvalue() == ""
