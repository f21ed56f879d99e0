"""Kill the process that has this module on its PYTHONPATH when it calls the function named in the file CRASH_FILE.

CRASH_AT lists the functions that may be named, as `module:name` or `module:Class.name`, separated by spaces. The
file is removed first, so that the next process is not killed.
"""

from __future__ import annotations

import os
import signal
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any


def _watch(point: str, file: Path) -> None:
    module, _, path = point.partition(":")
    *within, name = path.split(".")
    owner: Any = import_module(module)
    owner = attrgetter(".".join(within))(owner) if within else owner
    called = getattr(owner, name)

    def crash(*args: Any) -> Any:
        if file.exists() and file.read_text() == point:
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return called(*args)

    setattr(owner, name, crash)


for _point in os.environ["CRASH_AT"].split():
    _watch(_point, Path(os.environ["CRASH_FILE"]))
