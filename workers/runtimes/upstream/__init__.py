"""Runtime "upstream": an OpenAI-compatible server executes the requests.

`engine.py` is the Generator. Its thread runs an event loop with one task per request (`run.py`): the task sends the
body that `body.py` writes, reads events (`events.py`) as chunks (`chunks.py`), and continues an answer that broke
off (`progress.py`). The outputs wait in a bounded buffer (`outbox.py`) for the worker's engine thread.
"""

from __future__ import annotations

from collections.abc import Callable

from shared.models.model_store import ModelRepository
from shared.settings import Settings
from workers.engine.interface import Generator
from workers.runtimes.upstream.engine import UpstreamEngine


def load(settings: Settings, repository: ModelRepository, set_progress: Callable[[float], None]) -> Generator:
    """Connect to the settings' upstream server. Raises ConfigError if it cannot be used."""
    return UpstreamEngine.connect(settings)
