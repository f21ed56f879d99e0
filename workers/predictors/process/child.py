"""Program of the process of a predictor: `python -m workers.predictors.process.child SOCKET PARENT`.

SOCKET is the number of an inherited file descriptor, PARENT the id of the worker's process.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from shared.errors import HeadraceError
from shared.runtime.processes import die_with_parent
from workers.predictors.interface import Array, Arrays, Execution, Predictor
from workers.predictors.process.frames import FrameSocket
from workers.predictors.process.messages import Ended, Execute, Failed, Outputs, Proceed, Start, Started
from workers.predictors.select import framework_of


def main() -> None:
    die_with_parent(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the worker, which ends in order
    faulthandler.enable()
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        frames = FrameSocket(connection)
        try:
            _serve(frames)
        except (EOFError, ConnectionError):  # the worker closed the predictor, or ended
            return


def _serve(frames: FrameSocket) -> None:
    start, _ = frames.receive()
    assert isinstance(start, Start)
    predictor = _start(frames, start)
    if predictor is None:
        return
    try:
        while True:
            message, arrays = frames.receive()
            assert isinstance(message, Execute)
            _execute(frames, predictor, message, arrays)
    finally:
        predictor.close()


def _start(frames: FrameSocket, start: Start) -> Predictor | None:
    """Report the outcome to the worker. Return None if there is nothing to execute."""
    if start.memory_limit is not None:
        # not RLIMIT_AS: libraries reserve addresses that they never use
        resource.setrlimit(resource.RLIMIT_DATA, (start.memory_limit, start.memory_limit))
    folder = Path(start.folder)
    try:
        module = framework_of(start.spec)
        if start.goal == "complete":
            frames.send(Started(module.complete(start.spec, folder), 0), {})
            return None
        predictor = module.load(start.spec, folder, threads=start.threads)
    except Exception as error:  # noqa: BLE001  the worker reports it
        if not isinstance(error, HeadraceError):
            traceback.print_exc()  # on stderr, which the worker logs
        frames.send(_failed(error, f"{type(error).__name__}: {error}"), {})
        return None
    frames.send(Started(start.spec, _memory_bytes()), {})
    return predictor


def _execute(frames: FrameSocket, predictor: Predictor, message: Execute, arrays: dict[str, Array]) -> None:
    call = Execution(arrays, message.outputs, message.parameters)
    responses: Iterator[Arrays] | None = None
    try:
        if not message.stream:
            frames.send(Outputs(), predictor.predict(call))
            return
        responses = iter(predictor.stream(call))
        for outputs in responses:
            frames.send(Outputs(), outputs)
            proceed, _ = frames.receive()
            if isinstance(proceed, Proceed) and not proceed.more:
                break
        _close(responses)
        frames.send(Ended(), {})
    except (EOFError, ConnectionError):
        raise
    except Exception as error:
        failed = _failed(error, type(error).__name__)
        if not failed.code:  # the exception's message may quote the inputs
            print(*traceback.format_tb(error.__traceback__), failed.message, sep="", file=sys.stderr)  # noqa: T201
        frames.send(failed, {})
        if failed.out_of_memory:
            raise SystemExit(1) from error


def _close(responses: Iterator[Arrays]) -> None:
    """Let a generator clean up."""
    if hasattr(responses, "close"):
        responses.close()


def _failed(error: Exception, description: str) -> Failed:
    if isinstance(error, HeadraceError):
        return Failed(code=error.code, message=error.message, param=error.param)
    return Failed(message=description, out_of_memory=isinstance(error, MemoryError))


def _memory_bytes() -> int:
    """Return the memory of this process that is its own."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    _, resident, shared, *_ = (int(pages) for pages in statm.read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGESIZE")


if __name__ == "__main__":
    main()
