"""Metrics of a batch-runner process."""

from __future__ import annotations

from shared.metrics.api import duplicates, limited
from shared.metrics.declaration import Declaration

LIMITED, DUPLICATES = limited("tasks"), duplicates("tasks")
BATCHES = Declaration(
    "counter",
    "headrace_tasks_batches",
    "Batches that this process finished: completed, cancelled or expired",
    ("outcome",),
)
LINES = Declaration(
    "counter",
    "headrace_tasks_lines",
    "Lines of batches that ended; those of a stopped batch count as failed",
    ("outcome",),
)
RUNNING = Declaration("gauge", "headrace_tasks_running", "Batches that this process works on")

TASKS = (BATCHES, LINES, RUNNING, LIMITED, DUPLICATES)
