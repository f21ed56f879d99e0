"""Guard around each stage of a worker: an exception that a request causes ends that request alone.

Stages refuse the bad input that they check for with InvalidRequest. The guard is for unexpected exceptions: a chat
template that recurses endlessly, a tokenizer that panics, a parameter that overflows a tensor.
"""

from __future__ import annotations

import traceback
from types import TracebackType

import structlog

from shared.errors import EngineFailed, HeadraceError

PANIC_MODULE = "pyo3_runtime"  # a panic in Rust raises its PanicException, which is not a subclass of Exception

_log = structlog.get_logger(__name__)


class Stage:
    """Context manager that replaces any exception of its block by EngineFailed.

    A HeadraceError passes through unchanged, and so do exceptions that end the process or cancel a task.

    Args:
        name: the stage as a noun; it appears in the error that the caller gets.
        ids: logged (`job_id=…`, `run_id=…`) with the type of the exception and its place in the source. The
            exception's message may quote the prompt, so it is not logged.
    """

    __slots__ = ("_ids", "_name")

    def __init__(self, name: str, **ids: str) -> None:
        self._name = name
        self._ids = ids

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, HeadraceError):
            return
        if not issubclass(kind, Exception) and kind.__module__ != PANIC_MODULE:
            return
        place = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(trace)[-1:]]
        _log.error("stage_failed", stage=self._name, error=kind.__name__, place=place, **self._ids)
        raise EngineFailed(f"this request made the {self._name} fail") from error
