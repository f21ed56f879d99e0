"""Child processes that end with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Make Linux send a signal to this child when the thread that started it ends; for `preexec_fn`.

    Args:
        parent: id of the process that starts the child; 1 in a container.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # the parent was gone before the call
            if number != signal.SIGKILL:
                signal.signal(number, signal.SIG_DFL)  # until exec, a handler of the parent would take it
            os.kill(os.getpid(), number)
