"""Shift the wall clock of Python in a process that has this module on its PYTHONPATH by CLOCK_SHIFT seconds."""

from __future__ import annotations

import os
import time

_SHIFT = int(os.environ["CLOCK_SHIFT"])
_time, _time_ns = time.time, time.time_ns

time.time = lambda: _time() + _SHIFT
time.time_ns = lambda: _time_ns() + _SHIFT * 1_000_000_000
