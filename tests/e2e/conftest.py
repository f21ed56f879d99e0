"""Full installation, started as a user starts it, on the scripted engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.launched_server import OTHER_PYTHON, Launched


@pytest.fixture(scope="package")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """All processes of `headrace up` with the scripted engine and two workers, in OTHER_PYTHON."""
    options = ("--model", "scripted", "--workers", "2", "--grpc-port", "0")
    made = Launched(tmp_path_factory.mktemp("up") / "data", *options, worker_python=OTHER_PYTHON)
    try:
        made.await_line("^ready: ")
        yield made
        made.await_idle()  # no test left anything running
    finally:
        made.stop()


@pytest.fixture
def scripted_up(launched: Launched) -> Iterator[Launched]:
    """The shared installation; each test must leave it ready."""
    yield launched
    launched.await_ready()
