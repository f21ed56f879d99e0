"""The guard around each stage of a worker: what a request makes a stage raise ends that request.

Bad input that a stage foresees is refused as InvalidRequest. This is for what it does not foresee: a chat template
that recurses without end, a tokenizer that panics, a parameter that overflows a tensor.
"""

from __future__ import annotations

import traceback
from types import TracebackType

import structlog

from shared.errors import EngineFailed, HeadraceError

PANICS = "pyo3_runtime"  # the module of the exception that a panic in Rust becomes; it is no Exception

_log = structlog.get_logger(__name__)


class Stage:
    """Context manager that raises EngineFailed in place of whatever its block raises.

    A HeadraceError passes through unchanged, and so does what ends a process or cancels a task.

    Args:
        name: what is being done, as a noun; told to the caller.
        ids: for the log (`job_id=…`, `run_id=…`), which gets the kind of the error and its place in the source. The
            error's own words may quote the prompt, and are not logged.
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
        if not issubclass(kind, Exception) and kind.__module__ != PANICS:
            return
        place = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(trace)[-1:]]
        _log.error("stage_failed", stage=self._name, error=kind.__name__, place=place, **self._ids)
        raise EngineFailed(f"this request made the {self._name} fail") from error
