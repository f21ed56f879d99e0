"""Child processes that end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
from functools import partial

from shared.runtime.processes import die_with_parent


def status_of_child(parent: int) -> int:
    return subprocess.run(["true"], preexec_fn=partial(die_with_parent, parent), check=False).returncode


def test_a_child_ends_if_its_parent_was_gone_before_the_call() -> None:
    """Also if the parent, as the launcher does, handles the signal."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        assert status_of_child(os.getpid()) == 0
        assert status_of_child(1) == -signal.SIGTERM  # which may be the parent in a container
    finally:
        signal.signal(signal.SIGTERM, before)
