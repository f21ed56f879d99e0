"""Structured logs on stderr: readable on a terminal, JSON elsewhere, and never with prompt or answer text.

If stderr blocks, lines are dropped and counted, so that nothing waits for it.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping
from io import StringIO
from typing import TextIO

import structlog

from shared.runtime.control_characters import visible
from shared.runtime.log_writer import Lines
from shared.settings import Settings

HARMLESS = re.compile(r"[\w.:@/*-]{1,200}", re.ASCII)  # a name, an id or an address: not a person's text

_writers: list[Lines] = []  # of this process


class _LibraryRecords(logging.Handler):
    """Handler that passes records of a library to structlog, at their level.

    A library may log what it was given: Celery logs the body of a message that it cannot read. So only the first
    line is kept, and of the values in it only numbers, names and ids.
    """

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno,
            record.name.partition(".")[0],
            message=_first_line(str(record.msg), record.args),
            exc_info=record.exc_info,
        )


def _first_line(template: str, values: Mapping[str, object] | tuple[object, ...] | None) -> str:
    line = template.partition("\n")[0]
    if not values:
        return line
    if isinstance(values, Mapping):
        return line % {name: _harmless(value) for name, value in values.items()}
    places = len(re.findall("%[^%]", line.replace("%%", "")))
    return line % tuple(_harmless(value) for value in values[:places])


def _harmless(value: object) -> object:
    if isinstance(value, int | float):
        return value
    return value if isinstance(value, str) and HARMLESS.fullmatch(value) else f"<{type(value).__name__}>"


def _without_control(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Remove control characters, for a terminal. Of values that are no texts, it shows Python's form."""
    return {name: visible(value) if isinstance(value, str) else value for name, value in event.items()}


def _plain_traceback(out: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    text = StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    out.write(visible(text.getvalue()))


def log_library_warnings(*names: str) -> None:
    """Log the warnings and errors of libraries, named as their loggers, beside those of this process."""
    for name in names:
        logging.getLogger(name).addHandler(_LibraryRecords(logging.WARNING))


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
        processors += [_without_control, structlog.dev.ConsoleRenderer(exception_formatter=_plain_traceback)]
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


def settle_logs() -> None:
    """Wait a moment until the last lines are written, before an end that runs no exit handlers."""
    for lines in _writers:
        lines.settle()


def lines_dropped() -> int:
    """Return how many lines this process could not write."""
    return sum(lines.dropped for lines in _writers)
