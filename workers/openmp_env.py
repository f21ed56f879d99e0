"""How OpenMP's threads wait for each other. It must be said before torch is imported."""

from __future__ import annotations

import os


def spin_briefly() -> None:
    """Let a waiting thread sleep after a few microseconds, unless the environment says otherwise.

    By default libgomp spins for milliseconds. Where another process wants the same cores, the threads then burn the
    time that the last of them needs: two engines on two cores ran at a tenth of the speed of one, and with this at
    a half, which is all that there is.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
