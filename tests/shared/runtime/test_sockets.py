"""Free ports, outside the system's ephemeral range."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from headrace.launcher.up import claim_port
from shared.errors import ConfigError
from shared.redis.embedded import HOST
from shared.runtime import sockets


def test_nothing_that_connects_out_is_given_one() -> None:
    """Neither a free port nor its cluster bus is an ephemeral port."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = sockets.free_ports(HOST, 50)

    assert len(set(found)) == 50
    assert max(found) + 10_000 < first


def test_a_port_in_use_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one of three ports in use, the two others are found, and a request for three fails."""
    span = sockets.free_ports(HOST, 3)
    monkeypatch.setattr(sockets, "PORTS", span)
    with socket.create_server((HOST, span[1])):
        assert set(sockets.free_ports(HOST, 2)) == {span[0], span[2]}
        with pytest.raises(OSError) as caught:
            sockets.free_ports(HOST, 3)
    assert caught.value.errno == errno.EADDRINUSE


def test_all_free_ports_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    span = sockets.free_ports(HOST, 3)
    monkeypatch.setattr(sockets, "PORTS", span)

    assert set(sockets.free_ports(HOST, 3)) == set(span)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_port_is_claimed_on_each_kind_of_host(host: str) -> None:
    with claim_port(host, 0) as holder:
        port = holder.getsockname()[1]
        assert port in sockets.PORTS
        with claim_port(host, port) as second:
            assert second.getsockname()[1] == port


def test_a_reserved_port_is_skipped_but_can_be_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reserved port is never found free, and its own server can start, end and start again."""
    span = sockets.free_ports(HOST, 2)
    monkeypatch.setattr(sockets, "PORTS", span)
    with sockets.reserve_port(HOST, span[0]):
        assert sockets.free_ports(HOST, 1) == [span[1]]
        for _ in range(2):
            with socket.create_server((HOST, span[0])) as server, socket.create_connection(server.getsockname()):
                pass
        assert sockets.free_ports(HOST, 1) == [span[1]]


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", "http://127.0.0.1:8"), ("::1", "http://[::1]:8")])
def test_the_url_of_each_kind_of_host(host: str, url: str) -> None:
    assert sockets.url_of(host, 8) == url


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_a_host_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigError) as refused:
        claim_port(host, 0)
    assert refused.value.param == "port"
