"""Scale and report of the chaos suite, and the cluster that most cases share."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.chaos.report import Report, Row
from tests.chaos.scale import Scale
from tests.support.cluster import Cluster, running

FULL_TIMEOUT_S = 3600.0  # of one case at full scale, without the soak
SEED = 20_26

REPORT = pytest.StashKey[Report]()
FIGURES = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    group.addoption(
        "--full",
        action="store_true",
        help="chaos: run with the number of faults that the contract promises to survive",
    )
    group.addoption("--minutes", type=float, default=30.0, help="chaos: duration of the full soak")
    group.addoption("--case", action="append", default=[], help="chaos: run only this case; may be repeated")
    group.addoption("--report", type=Path, help="chaos: write the report to this file")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "case(name, title): one row of the chaos report")
    config.stash[REPORT] = Report(scale_of(config))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run all cases in one event loop, only the selected ones, and with the time limit of their scale."""
    here = Path(__file__).parent
    scale, wanted = scale_of(config), set(config.getoption("case", []))
    left_out = []
    for item in items:
        if not item.path.is_relative_to(here):
            continue
        item.add_marker(pytest.mark.asyncio(loop_scope="package"), append=False)
        marker = item.get_closest_marker("case")
        if wanted and (marker is None or marker.args[0] not in wanted):
            left_out.append(item)
        if scale.full:
            item.add_marker(pytest.mark.timeout(FULL_TIMEOUT_S + scale.minutes * 60), append=False)
    known = {marker.args[0] for item in items if (marker := item.get_closest_marker("case"))}
    if unknown := wanted - known:
        raise pytest.UsageError(f"no case {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome: pytest.TestReport = yield
    marker = item.get_closest_marker("case")
    if marker is not None and (outcome.when == "call" or outcome.failed):
        name, title = marker.args
        if callspec := getattr(item, "callspec", None):
            title = f"{title} ({callspec.id})"
        failure = str(call.excinfo.value) if call.excinfo else ""
        row = Row(name, title, outcome.passed, item.stash.get(FIGURES, {}), failure, outcome.duration)
        item.config.stash[REPORT].rows.append(row)
    return outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("report", None)
    if path is not None:
        session.config.stash[REPORT].write(path)


def scale_of(config: pytest.Config) -> Scale:
    return Scale(full=config.getoption("full", False), minutes=config.getoption("minutes", 30.0))


@pytest.fixture(scope="package")
def scale(request: pytest.FixtureRequest) -> Scale:
    return scale_of(request.config)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Figures of this case for the report, in the order of insertion."""
    return request.node.stash.setdefault(FIGURES, {})


@pytest.fixture
def dice() -> random.Random:
    """Random choice of the process to hit, the same in every run."""
    return random.Random(SEED)


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def fleet(scale: Scale, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Two APIs and three workers. A request may lose any number of workers, since the cases kill many."""
    folder = tmp_path_factory.mktemp("fleet")
    settings = {"lease": scale.lease, "max_attempts": 100, "max_num_seqs": 128}
    async with running(folder, apis=2, workers=3, **settings) as cluster:
        yield cluster
