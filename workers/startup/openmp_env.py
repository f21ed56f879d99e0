"""OpenMP settings in the environment; they must be set before torch is imported."""

from __future__ import annotations

import os


def spin_briefly() -> None:
    """Let a waiting thread sleep after a few microseconds, unless the environment says otherwise.

    By default libgomp spins for milliseconds. If another process needs the same cores, the spinning threads take
    the time that the slowest thread needs: two engines on two cores each ran at a tenth of the speed of one alone.
    With this setting each runs at half, which is the most that two cores can give.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
