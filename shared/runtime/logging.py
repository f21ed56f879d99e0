"""Structured logs on stderr: for people on a terminal, JSON elsewhere. No prompt or answer text goes in.

Where nobody takes them lines are dropped, and counted, before anything waits.
"""

from __future__ import annotations

import logging
import os
import sys

import structlog

from shared.runtime.log_writer import Lines
from shared.settings import Settings

_outlets: list[Lines] = []  # of this process


def configure_logging(settings: Settings, *, process: str) -> None:
    """Set up structlog for this process; `process` (api, worker, …) is on every line."""
    lines = Lines(os.dup(sys.stderr.fileno()))  # whatever becomes of stderr
    pretty = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if pretty:
        # a rich traceback would show local variables, and prompts with them
        processors.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.log_level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(lines),  # type: ignore[arg-type]  # as much of a file as it uses
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    _outlets.append(lines)


def lines_dropped() -> int:
    """Lines that this process could not write."""
    return sum(lines.dropped for lines in _outlets)
