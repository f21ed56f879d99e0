"""Addresses of webhooks: which are allowed, and that the connection goes to the checked one."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from pathlib import Path

import pytest

from producer_api.webhooks.address import AddressRules, ForbiddenAddress
from producer_api.webhooks.post import WebhookClient
from shared.errors import Unavailable
from tests.support.certificates import make
from tests.support.waiting import LIMIT_S
from tests.support.webhook_receiver import Receiver, status

STRICT, OPEN = AddressRules(), AddressRules(http=True, private=True)
FORBIDDEN = (
    "127.0.0.1 127.9.9.9 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 240.0.0.1 "
    "255.255.255.255 192.0.2.1 198.18.0.1 ::1 :: fe80::1 fc00::1 fec0::1 ff02::1 2001:db8::1 ::ffff:10.0.0.1 "
    "::7f00:1 64:ff9b::7f00:1 64:ff9b:1::1 2002:7f00:1:: 2001:0:1::1"
)


@pytest.mark.parametrize("text", FORBIDDEN.split())
def test_other_than_public_addresses_are_refused(text: str) -> None:
    address = ipaddress.ip_address(text)
    with pytest.raises(ForbiddenAddress):
        STRICT.check(address)
    with pytest.raises(ForbiddenAddress):
        STRICT.parse(f"https://{f'[{text}]' if ':' in text else text}/")


@pytest.mark.parametrize("text", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_allowed(text: str) -> None:
    STRICT.check(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "ftp://a/",
        "http://a/",
        "https://",
        "https://u:p@a/",
        "https://a" + "/x" * 2000,
        "https://[::",
    ],
)
def test_invalid_urls_are_refused(url: str) -> None:
    with pytest.raises(ForbiddenAddress):
        STRICT.parse(url)


@pytest.mark.parametrize("host", ["localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1"])
async def test_names_and_odd_spellings_are_resolved_first(host: str) -> None:
    with pytest.raises((ForbiddenAddress, Unavailable)):
        await STRICT.resolve(STRICT.parse(f"https://{host}/"))


class Names:
    """Resolver with scripted answers that records the names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: list[list[str]]) -> None:
        self.resolved: list[str] = []
        self._answers = {name.replace("_", "."): given for name, given in answers.items()}
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "getaddrinfo", self._look, raising=False)

    async def _look(self, host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        if host not in self._answers:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        self.resolved.append(host)
        given = self._answers[host]
        found = given.pop(0) if len(given) > 1 else given[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]


async def test_one_private_address_of_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch, mixed_example=[["8.8.8.8", "10.0.0.1"]])
    with pytest.raises(ForbiddenAddress):
        await STRICT.resolve(STRICT.parse("https://mixed.example/"))


async def test_the_connection_goes_to_the_checked_address(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    """A name with a different second answer is resolved once; the Host header has the name."""
    names = Names(monkeypatch, a_example=[["127.0.0.1"], ["192.0.2.1"]])
    poster = WebhookClient(OPEN, timeout=LIMIT_S)
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:1")
    outcome = await poster.post(receiver.url("a.example"), {}, b"{}")
    assert outcome.delivered, outcome
    assert names.resolved == ["a.example"]
    assert receiver.received[0].headers["host"] == f"a.example:{receiver.port}"
    await poster.close()


async def test_the_tls_certificate_must_match_the_name(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver, tmp_path: Path
) -> None:
    make(tmp_path, "a.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=context)
    receiver.port = server.sockets[0].getsockname()[1]
    Names(monkeypatch, a_example=[["127.0.0.1"]], b_example=[["127.0.0.1"]])
    poster = WebhookClient(OPEN, timeout=LIMIT_S)
    outcome = await poster.post(f"https://a.example:{receiver.port}/", {}, b"{}")
    assert outcome.delivered, outcome
    assert (await poster.post(f"https://b.example:{receiver.port}/", {}, b"{}")).error == "ConnectError"
    assert len(receiver.received) == 1
    await poster.close()
    server.close()


class LoopbackAllowed(AddressRules):
    """Rules that treat 127.0.0.1 as public."""

    def check(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
        if str(address) != "127.0.0.1":
            super().check(address)


async def test_redirects_are_checked_and_limited(monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> None:
    Names(monkeypatch, inside_example=[["10.0.0.1"]])
    poster = WebhookClient(LoopbackAllowed(http=True), timeout=LIMIT_S)
    receiver.answers = [status(307, "location: /next"), status(308, f"location: {receiver.url()}"), status(200)]
    assert (await poster.post(receiver.url(), {"webhook-id": "m"}, b"{}")).status == 200
    assert [each.path for each in receiver.received] == ["/hook", "/next", "/hook"]
    assert {(each.body, each.headers["webhook-id"]) for each in receiver.received} == {(b"{}", "m")}
    for target in ("http://inside.example/", "http://169.254.169.254/", "http://[::1]/", "file:///etc/passwd"):
        receiver.answers = [status(302, f"location: {target}")]
        outcome = await poster.post(receiver.url(), {}, b"{}")
        assert (outcome.permanent, outcome.delivered) == (True, False), target
    receiver.answers = [status(307, "location: /again")] * 9
    before = len(receiver.received)
    outcome = await poster.post(receiver.url(), {}, b"{}")
    assert (outcome.delivered, len(receiver.received) - before) == (False, 4)
    receiver.answers = [status(303, "location: /other")]
    assert (await poster.post(receiver.url(), {}, b"{}")).status == 303
    await poster.close()


async def test_a_bad_receiver_does_not_block_the_client(receiver: Receiver) -> None:
    """An endless body, silence, nonsense and a closed port end with a status or an error, in time."""
    poster, hurried = WebhookClient(OPEN, timeout=LIMIT_S), WebhookClient(OPEN, timeout=0.5)
    receiver.answers = [
        b"HTTP/1.1 200 x\r\ncontent-length: 99999999999\r\n\r\n" + b"x" * 100_000,
        None,
        b"nonsense\r\n\r\n",
    ]
    assert (await poster.post(receiver.url(), {}, b"{}")).delivered
    assert (await hurried.post(receiver.url(), {}, b"{}")).error == "timeout"
    await hurried.close()
    assert (await poster.post(receiver.url(), {}, b"{}")).error == "RemoteProtocolError"
    assert (await poster.post("http://127.0.0.1:1/", {}, b"{}")).error == "ConnectError"
    receiver.answers = [status(503, "retry-after: 77"), status(503, "retry-after: Fri, 31 Dec 2999 23:59:59 GMT")]
    assert (await poster.post(receiver.url(), {}, b"{}")).retry_after == 77
    assert (await poster.post(receiver.url(), {}, b"{}")).retry_after == 6 * 3600
    await poster.close()
