"""Child processes that end with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_parent(parent: int) -> None:
    """Make Linux send SIGTERM to this child when the thread that started it ends; for `preexec_fn`.

    Args:
        parent: id of the process that starts the child; 1 in a container.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent was gone before the call
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until exec, a handler of the parent would take it
            os.kill(os.getpid(), signal.SIGTERM)
