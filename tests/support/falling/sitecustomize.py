"""On PYTHONPATH of a process, ends it at once where it comes to the function that the file FALL_FILE names.

FALL_AT has the functions that may be named, `module:name` or `module:Class.name`, with spaces between. The file is
removed first: the process that follows gets past.
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

    def fall(*args: Any) -> Any:
        if file.exists() and file.read_text() == point:
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return called(*args)

    setattr(owner, name, fall)


for _point in os.environ["FALL_AT"].split():
    _watch(_point, Path(os.environ["FALL_FILE"]))
