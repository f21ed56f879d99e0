"""Tests. They let Python keep compiled modules, which the hundreds of processes that they start share."""

from __future__ import annotations

import os
import sys

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
