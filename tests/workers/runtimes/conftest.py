"""A fake upstream server, and a runtime that sends it requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_upstream import (
    FakeUpstream,
    serving,
)
from tests.support.runtime_driver import RuntimeDriver
from tests.support.upstream_faults import settings_for
from workers.runtimes.upstream import run as upstream_run


@pytest.fixture(scope="module")
def running_server() -> Iterator[FakeUpstream]:
    with pytest.MonkeyPatch.context() as patch, serving() as made:
        patch.setattr(upstream_run, "FIRST_PAUSE_S", 0.001)
        patch.setattr(upstream_run, "FIRST_BUSY_PAUSE_S", 0.001)
        yield made


@pytest.fixture(scope="module")
def runtime(running_server: FakeUpstream) -> Iterator[RuntimeDriver]:
    with RuntimeDriver.of(settings_for(running_server)) as driver:
        yield driver


@pytest.fixture
def server(running_server: FakeUpstream) -> FakeUpstream:
    running_server.reset()
    return running_server
