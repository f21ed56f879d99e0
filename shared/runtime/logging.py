"""Structured logs on stderr: readable on a terminal, JSON elsewhere, and never with prompt or answer text.

If stderr blocks, lines are dropped and counted, so that nothing waits for it.
"""

from __future__ import annotations

import logging
import os
import sys

import structlog

from shared.runtime.log_writer import Lines
from shared.settings import Settings

_writers: list[Lines] = []  # of this process


def configure_logging(settings: Settings, *, process: str) -> None:
    """Set up structlog; every line carries `process` (api, worker, …)."""
    lines = Lines(os.dup(sys.stderr.fileno()))  # stays open if stderr is closed
    pretty = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if pretty:
        # a rich traceback would show local variables, which hold prompts
        processors.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.log_level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(lines),  # type: ignore[arg-type]  # has the methods of a file that structlog uses
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    _writers.append(lines)


def lines_dropped() -> int:
    """Return how many lines this process could not write."""
    return sum(lines.dropped for lines in _writers)
