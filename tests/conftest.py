"""Fixtures for all tests: a real Redis server, emptied for each test, and settings for it."""

from __future__ import annotations

import atexit
import gc
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import hypothesis
import pytest

from shared.backend import Backend
from shared.models.model_store import MINILM, ModelRepository
from shared.redis.embedded import EmbeddedServer
from shared.settings import Settings, load
from tests.support import certificates
from tests.support.trace_collector import Collector, collecting
from tests.support.waiting import LIMIT_S
from tests.support.xdist_internals import join_group
from workers.startup.openmp_env import spin_briefly

if TYPE_CHECKING:
    from kafka import KafkaProducer
    from openai import AsyncOpenAI

if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: a GPU's kernels run on the CPU
# read when gRPC starts: its fork handlers abort one in ten of the children that only execute a program
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
spin_briefly()  # tests share the cores with the servers that they start
# Hypothesis' default limits are on an example's wall time
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")
INSTALLATIONS = {"cluster", "fleet", "scripted_up"}  # fixtures of packages, which start several processes
FOLDERS = itertools.count()  # numbers of the folders of this process
COLLECTIONS = (20_000, 20, 20)  # rare: every full one visits the modules that tests import when they run


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without the garbage collector, which would visit what is imported again and again, also later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(*COLLECTIONS)
        gc.enable()
        atexit.register(gc.unfreeze)  # libraries report what is left when the process ends


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run fast tests first, and the tests of a file together, as well as files that share an installation."""
    items.sort(key=_slow)
    if not config.getoption("loadgroup", False):  # set by xdist in its processes
        return
    sharing = {_file(item): f"{_file(item).parent}" for item in items if INSTALLATIONS & set(_fixtures(item))}
    for item in items:
        group = sharing.get(_file(item), _file(item)) if _slow(item) else _file(item)
        join_group(item, f"{group}:{_slow(item)}")


def _file(item: pytest.Item) -> Path:
    return Path(item.location[0])


def _fixtures(item: pytest.Item) -> list[str]:
    return item.fixturenames if isinstance(item, pytest.Function) else []


def _slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


@pytest.fixture(scope="session", autouse=True)
def trusted_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let TLS clients trust a CA of the tests: each client of httpx would read the system's 150 certificates."""
    folder = certificates.make(tmp_path_factory.mktemp("authority"), "localhost")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(folder / "ca.pem"))
        yield


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Folder of the test; pytest's own fixture also replaces a link to the latest one, in twice the time."""
    name = "".join(each if each.isalnum() else "_" for each in request.node.name)[:26]
    return tmp_path_factory.mktemp(f"{next(FOLDERS)}-{name}", numbered=False)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Hide the user's settings and data from the tests and from the processes that they start."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "data"))
    for variable in [name for name in os.environ if name.startswith(("HEADRACE_", "OTEL_"))]:
        monkeypatch.delenv(variable)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The bundled Redis server, or the one whose path is in TEST_REDIS_SERVER."""
    server = EmbeddedServer(tmp_path_factory.mktemp("valkey"), binary=os.environ.get("TEST_REDIS_SERVER"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def bootstrap() -> str:
    """Address of the Kafka brokers: the mock, or those in TEST_KAFKA."""
    from headrace.bench.kafka import mock_kafka
    from tests.support import kafka_mock

    return kafka_mock.BROKER or mock_kafka.cluster().bootstrap


@pytest.fixture(scope="session")
def kafka_writer(bootstrap: str) -> Iterator[KafkaProducer]:
    from shared.kafka import topics
    from shared.kafka.connection import producer
    from tests.support import kafka_mock
    from tests.support.fakes import MODEL

    kafka_mock.make_topics(bootstrap, topics.api_requests(MODEL))
    made = producer(load(kafka_mock.address(bootstrap)).settings)
    yield made
    made.close(timeout=2)


@pytest.fixture
def settings(valkey: EmbeddedServer, tmp_path: Path) -> Settings:
    """Settings with a lease and time limits that a stalled machine does not reach."""
    given = {"redis_url": valkey.url, "port": 0, "data_dir": tmp_path / "data", "model": "scripted"}
    return load({**given, "lease": LIMIT_S, "redis_timeout": 30, "rate_limit_timeout": 30}).settings


@pytest.fixture(autouse=True)
def patient_admission(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let admission in this process wait for Redis as long as tests wait for anything."""
    monkeypatch.setattr("producer_api.admission.deadline.REDIS_DEADLINE_S", LIMIT_S)


@pytest.fixture
async def backend(settings: Settings) -> AsyncIterator[Backend]:
    opened = Backend.open(settings)
    await opened.start()
    await opened.redis.flushall()
    yield opened
    await opened.close()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct, converted into the user's cache when first used."""
    return ModelRepository(load().settings).folder()


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2, unpacked into the user's cache when first used."""
    return ModelRepository(load({"model": MINILM.name}).settings).folder()


@pytest.fixture
async def sdk(api: str) -> AsyncIterator[AsyncOpenAI]:
    """Client of OpenAI's package for the server `api` of the test's folder."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=f"{api}/v1", api_key="none", max_retries=0, timeout=LIMIT_S) as opened:
        yield opened


@pytest.fixture
async def http(api: str) -> AsyncIterator[httpx.AsyncClient]:
    """Client for the server `api` of the test's folder."""
    async with httpx.AsyncClient(base_url=api, timeout=LIMIT_S) as opened:
        yield opened


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Collector of traces in the process of the test."""
    with collecting() as running:
        yield running
