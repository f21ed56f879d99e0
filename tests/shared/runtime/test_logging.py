"""Log lines of libraries."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

from tests.support.waiting import LIMIT_S

CODE = """
import logging
from celery.utils.log import get_logger
from celery.worker.consumer import consumer
from shared.settings import Settings
from shared.runtime.logging import configure_logging, log_library_warnings
configure_logging(Settings(log_format="json"), process="tasks")
log_library_warnings("celery", "kombu")
celery = get_logger("celery.worker.consumer.consumer")
celery.error(consumer.UNKNOWN_TASK_ERROR, "some.task", "canary body", "name", "kwargs")
celery.warning("beat: Connection error: %s. Trying again in %s seconds...", ValueError("canary value"), 2.0)
celery.info("canary, not important enough")
context = {"name": "headrace.x", "id": "1-2", "description": "raised", "exc": "canary error", "traceback": "canary"}
try:
    raise ZeroDivisionError
except ZeroDivisionError:
    line = "Task %(name)s[%(id)s] %(description)s: %(exc)s\\n%(traceback)s"
    get_logger("celery.app.trace").critical(line, context, exc_info=True)
logging.getLogger("kombu.x").error("100%% of %d", 7)
"""


def test_warnings_of_libraries_are_logged_without_what_they_quote() -> None:
    told = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=LIMIT_S)
    lines = [json.loads(line) for line in told.stderr.splitlines()]
    assert [(line["event"], line["level"], line["process"], line["message"]) for line in lines] == [
        ("celery", "error", "tasks", "Received unregistered task of type some.task."),
        (
            "celery",
            "warning",
            "tasks",
            "beat: Connection error: <ValueError>. Trying again in 2.0 seconds...",
        ),
        ("celery", "critical", "tasks", "Task headrace.x[1-2] raised: <str>"),
        ("kombu", "error", "tasks", "100% of 7"),
    ]
    assert "ZeroDivisionError" in lines[2]["exception"]
    assert "canary" not in told.stderr


CONTROLS = """
import structlog
from shared.settings import Settings
from shared.runtime.logging import configure_logging
configure_logging(Settings(log_format="console"), process="worker")
log = structlog.get_logger()
log.warning("refused", reason="a\\x1b[2J\\x9bb\\rc", other=["\\x1b"])
try:
    raise ValueError("d\\x1b]8;;e")
except ValueError:
    log.exception("failed")
"""


def test_values_cannot_control_the_terminal() -> None:
    told = subprocess.run(
        [sys.executable, "-c", CONTROLS],
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT_S,
        env=os.environ | {"NO_COLOR": "1", "FORCE_COLOR": ""},
    )
    lines = re.sub(r"\x1b\[[0-9;]*m", "", told.stderr)
    assert "reason=a[2Jbc" in lines.replace("'", "")
    assert "ValueError: d]8;;e" in lines
    assert not {"\x1b", "\x9b", "\r"} & set(lines)
