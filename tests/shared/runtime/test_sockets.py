"""Free ports: none that a connection of somebody else could have before its listener is there."""

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
    """Given the system's ports for connections, Expect neither a free port nor its cluster bus to be of them."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = sockets.free_ports(HOST, 50)

    assert len(set(found)) == 50
    assert max(found) + 10_000 < first


def test_what_is_listened_on_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given three ports and one listener, Expect the two others, and an error where three are asked for."""
    span = sockets.free_ports(HOST, 3)
    monkeypatch.setattr(sockets, "PORTS", span)
    with socket.create_server((HOST, span[1])):
        assert set(sockets.free_ports(HOST, 2)) == {span[0], span[2]}
        with pytest.raises(OSError) as caught:
            sockets.free_ports(HOST, 3)
    assert caught.value.errno == errno.EADDRINUSE


def test_all_that_are_free_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    span = sockets.free_ports(HOST, 3)
    monkeypatch.setattr(sockets, "PORTS", span)

    assert set(sockets.free_ports(HOST, 3)) == set(span)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_port_is_claimed_on_each_kind_of_host(host: str) -> None:
    port = claim_port(host, 0)

    assert port in sockets.PORTS
    assert claim_port(host, port) == port


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", "http://127.0.0.1:8"), ("::1", "http://[::1]:8")])
def test_the_url_of_each_kind_of_host(host: str, url: str) -> None:
    assert sockets.url_of(host, 8) == url


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_a_host_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigError) as refused:
        claim_port(host, 0)
    assert refused.value.param == "port"
