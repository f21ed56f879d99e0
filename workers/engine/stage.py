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
        if error is None:
            return
        failure = failure_of(self._name, error, **self._ids)
        if failure is not None and failure is not error:
            raise failure from error


def failure_of(stage: str, error: BaseException, **ids: str) -> HeadraceError | None:
    """Return the error that ends the request in whose stage an exception was raised; see `Stage`.

    For the path of every token, where entering a Stage costs too much. None for an exception that ends the process
    or cancels a task.
    """
    if isinstance(error, HeadraceError):
        return error
    kind = type(error)
    if not isinstance(error, Exception) and kind.__module__ != PANIC_MODULE:
        return None
    place = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-1:]]
    _log.error("stage_failed", stage=stage, error=kind.__name__, place=place, **ids)
    failure = EngineFailed(f"this request made the {stage} fail")
    failure.__cause__ = error
    return failure
