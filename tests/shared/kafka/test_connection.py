"""Connections to brokers: options, certificates and errors."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka.errors import KafkaTimeoutError
from kafka.net.inet import KafkaNetSocket

from headrace.bench.kafka import mock_kafka
from shared.errors import ConfigError
from shared.kafka.connection import FIRST_ANSWER_MS, connection, consumer, producer
from shared.settings import Settings, load
from tests.support import certificates
from tests.support.waiting import LIMIT_S


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, {"security_protocol": "PLAINTEXT", "bootstrap_servers": ["a:1", "b:2"]}),
        (
            {
                "kafka_security_protocol": "SASL_SSL",
                "kafka_sasl_mechanism": "SCRAM-SHA-512",
                "kafka_username": "u",
                "kafka_password": "p",
                "kafka_api_version": "2.0",
            },
            {
                "sasl_mechanism": "SCRAM-SHA-512",
                "sasl_plain_username": "u",
                "sasl_plain_password": "p",
                "api_version": (2, 0),
            },
        ),
        ({"kafka_bootstrap": ""}, "kafka_bootstrap"),
        ({"kafka_security_protocol": "SASL_SSL"}, "kafka_sasl_mechanism"),
        ({"kafka_sasl_mechanism": "PLAIN"}, "kafka_sasl_mechanism"),
        ({"kafka_security_protocol": "SASL_SSL", "kafka_sasl_mechanism": "PLAIN"}, "kafka_username"),
        ({"kafka_security_protocol": "SASL_SSL", "kafka_sasl_mechanism": "OAUTHBEARER"}, "kafka_token_file"),
        ({"kafka_security_protocol": "SSL", "kafka_ssl_cafile": "/none"}, "kafka_ssl_cafile"),
        ({"kafka_security_protocol": "SSL", "kafka_ssl_certfile": "/none"}, "kafka_ssl_certfile"),
    ],
)
def test_settings_become_a_connection(given: dict[str, str], told: dict[str, Any] | str) -> None:
    settings = load({"kafka_bootstrap": "a:1, b:2", **given}).settings
    if isinstance(told, str):
        with pytest.raises(ConfigError) as refused:
            connection(settings)
        assert refused.value.param == told
    else:
        assert connection(settings).items() >= told.items()


def test_a_bearer_token_is_read_for_each_connection(tmp_path: Path) -> None:
    path = tmp_path / "token"
    settings = load(
        {
            "kafka_bootstrap": "a:1",
            "kafka_security_protocol": "SASL_SSL",
            "kafka_sasl_mechanism": "OAUTHBEARER",
            "kafka_token_file": str(path),
        }
    ).settings
    provider = connection(settings)["sasl_oauth_token_provider"]
    for token in ("one", "two"):
        path.write_text(f"{token}\n")
        assert provider.token() == token


@pytest.mark.parametrize("make", [consumer, producer])
def test_nothing_stays_open_while_no_broker_answers(
    make: Callable[[Settings], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an address without a listener, neither a socket nor a thread of the failed attempt is left."""
    tried: list[socket.socket] = []
    make_socket = KafkaNetSocket.socket

    def recorded(self: KafkaNetSocket, *given: Any) -> socket.socket:
        tried.append(make_socket(self, *given))
        return tried[-1]

    monkeypatch.setattr(KafkaNetSocket, "socket", recorded)
    monkeypatch.setattr("shared.kafka.connection.FIRST_ANSWER_MS", 200)
    before = set(threading.enumerate())
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        settings = load({"kafka_bootstrap": f"127.0.0.1:{silent.getsockname()[1]}"}).settings
        with pytest.raises(KafkaTimeoutError):
            make(settings)
    assert tried
    assert [each for each in tried if each.fileno() >= 0] == []
    assert set(threading.enumerate()) <= before


class Front:
    """Serve TLS in front of the mock, for the first answer only, since the mock names its own address."""

    def __init__(self, folder: Path) -> None:
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(folder / "cert.pem", folder / "key.pem")

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = mock_kafka.cluster().bootstrap.partition(":")
        answers, requests = await asyncio.open_connection(host, int(port))
        try:
            either = [asyncio.create_task(pump(*ends)) for ends in ((reader, requests), (answers, writer))]
            _, left = await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            for task in left:
                task.cancel()
            await asyncio.gather(*either, return_exceptions=True)
        finally:
            for each in (requests, writer):
                each.close()


async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65_536):
        sink.write(data)
        await sink.drain()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates.make(tmp_path_factory.mktemp("front"), "localhost")


@pytest.fixture
async def port(folder: Path) -> AsyncIterator[int]:
    front = Front(folder)
    server = await asyncio.start_server(front.forward, "127.0.0.1", 0, ssl=front.context)
    async with server:
        yield server.sockets[0].getsockname()[1]


def trusting(address: str, ca: Path, **more: str) -> Settings:
    tls = {"kafka_security_protocol": "SSL", "kafka_ssl_cafile": str(ca)}
    return load({"kafka_bootstrap": address, **tls, **more}).settings


async def test_a_broker_with_a_trusted_certificate_is_used(folder: Path, port: int) -> None:
    settings = trusting(f"localhost:{port}", folder / "ca.pem", kafka_api_version=mock_kafka.VERSION)
    reader = await asyncio.to_thread(consumer, settings)
    await asyncio.to_thread(reader.bootstrap, FIRST_ANSWER_MS)
    reader.close()


HURRIED = """
from headrace.cli.main import main
from shared.kafka import connection

connection.FIRST_ANSWER_MS, connection.HANDSHAKE_LIMIT_S = 3_000, 1.0
main()
"""


async def tailed(settings: Settings) -> tuple[int | None, str]:
    """Run `headrace kafka tail` in a process, which records its own failures. Returns status and error."""
    names = ("kafka_bootstrap", "kafka_security_protocol", "kafka_ssl_cafile")
    own = {f"HEADRACE_{name.upper()}": str(getattr(settings, name)) for name in names}
    command = [sys.executable, "-c", HURRIED, "kafka", "tail"]
    started = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **own}, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            _, told = await started.communicate()
    finally:
        if started.returncode is None:
            started.kill()
    return started.returncode, told.decode()


@pytest.fixture
def mute() -> Iterator[int]:
    """Return the port of a listener that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.slow
async def test_an_untrusted_broker_is_reported_with_the_reason(
    folder: Path, port: int, mute: int, tmp_path: Path
) -> None:
    """The command ends with the reason: an unknown CA, a wrong name, a broker without TLS, or a silent one."""
    stranger = certificates.make(tmp_path, "localhost") / "ca.pem"
    cases = {
        "CERTIFICATE_VERIFY_FAILED": (f"localhost:{port}", stranger),
        "not valid for '127.0.0.1'": (f"127.0.0.1:{port}", folder / "ca.pem"),
        "handshake operation timed out": (f"localhost:{mute}", folder / "ca.pem"),
        "Handshake failed": (mock_kafka.cluster().bootstrap, folder / "ca.pem"),
    }
    ends = await asyncio.gather(*(tailed(trusting(*case)) for case in cases.values()))
    for why, (status, told) in zip(cases, ends, strict=True):
        assert status == 1
        assert why in told
        assert told.startswith("error: Kafka is unavailable")
