"""Accepted and refused forms of redis_url; errors never show its password."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from shared.errors import ConfigError
from shared.redis.url import SCHEMES, RedisURL


@pytest.mark.parametrize(
    ("url", "kind", "tls", "hosts", "options", "service"),
    [
        ("redis://", "server", False, (("localhost", 6379),), {}, ""),
        ("redis://cache:6380/2", "server", False, (("cache", 6380),), {"db": 2}, ""),
        ("redis://:p%40ss@cache", "server", False, (("cache", 6379),), {"password": "p@ss"}, ""),
        (
            "rediss://me:pw@[::1]:7000/0?ssl_check_hostname=false&ssl_cert_reqs=optional",
            "server",
            True,
            (("::1", 7000),),
            {"username": "me", "password": "pw", "ssl_check_hostname": False, "ssl_cert_reqs": "optional"},
            "",
        ),
        (
            "unix://:p@/run/v%23.sock?db=1",
            "socket",
            False,
            (),
            {"password": "p", "path": "/run/v#.sock", "db": 1},
            "",
        ),
        (
            "redis+sentinel://me:pw@a:1,b/mymaster/3",
            "sentinel",
            False,
            (("a", 1), ("b", 26379)),
            {"username": "me", "password": "pw", "db": 3},
            "mymaster",
        ),
        ("rediss+cluster://a:7000,[::1]:7001", "cluster", True, (("a", 7000), ("::1", 7001)), {}, ""),
    ],
)
def test_what_a_url_says(
    url: str, kind: str, tls: bool, hosts: object, options: dict[str, object], service: str
) -> None:
    found = RedisURL.parse(url)
    assert (found.kind, found.tls, found.hosts, found.service) == (kind, tls, hosts, service)
    assert found.options == options


def test_sentinels_have_a_user_of_their_own() -> None:
    found = RedisURL.parse("redis+sentinel://u:p@a/m?sentinel_username=s&sentinel_password=q")
    assert found.sentinel == {"username": "s", "password": "q"}
    assert found.options == {"username": "u", "password": "p"}


def test_missing_certificates_are_reported_at_the_start(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    with pytest.raises(ConfigError, match="ssl_ca_certs: no such file"):
        RedisURL.parse(f"rediss://a?ssl_ca_certs={ca}")
    ca.touch()
    assert RedisURL.parse(f"rediss://a?ssl_ca_certs={ca}").tls_options == {"ssl_ca_certs": str(ca)}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "must begin with"),
        ("localhost:6379", "must begin with"),
        ("http://cache", "must begin with"),
        ("redis://[::1", "must be a URL"),
        ("redis://cache:0", "host 1"),
        ("redis://cache:99999", "host 1"),
        ("redis://cache:x", "host 1"),
        ("redis://a b", "host 1"),
        ("redis://cache/zero", "must be a number"),
        ("redis://cache/0/1", "must be a number"),
        ("redis://cache?db=x", "db: must be a number"),
        ("redis://cache?socket_timeout=1", "option 1 after the ? is unknown; allowed: db"),
        ("redis://cache?ssl_ca_certs=x", "needs TLS"),
        ("rediss://cache?ssl_cert_reqs=maybe", "required, optional or none"),
        ("rediss://cache?ssl_check_hostname=maybe", "true or false"),
        ("rediss://cache?ssl_ciphers=a&ssl_ciphers=b", "given twice"),
        ("redis://:pa/ss@cache", "%2F"),
        ("redis://:pa#ss", "%23"),
        ("unix://", "needs the path"),
        ("unix://run/valkey.sock", "three slashes"),
        ("redis+sentinel://a:26379", "name of the master"),
        ("redis+sentinel://a,,b/m", "host 2"),
        ("redis+sentinel:///m", "host 1"),
        ("redis+cluster://a/1", "only has database 0"),
        ("redis+cluster://a?db=0", "option 1 after the ? is unknown; none is allowed"),
    ],
)
def test_an_invalid_url_names_the_reason(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match="redis_url: ") as refused:
        RedisURL.parse(url)
    assert reason in refused.value.message
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


@given(
    scheme=st.sampled_from([*SCHEMES, "http"]),
    secret=st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=6, max_size=24),
    rest=st.sampled_from(["@a:1/m", "@a", "@/s", "@a:x", "@a?db=x", "/m", ""]),
)
@example(scheme="redis", secret="se/cret", rest="@a")
@example(scheme="redis", secret="se?cret", rest="@a")
@example(scheme="redis", secret="se:cret", rest="")
@example(scheme="redis", secret="1?0000", rest="/m")
@example(scheme="redis", secret="@?0000", rest="/m")
@example(scheme="redis", secret="@host?secret", rest="")
def test_nothing_that_is_said_of_a_url_has_its_password(scheme: str, secret: str, rest: str) -> None:
    pieces = [piece for piece in secret.replace("?", "/").replace("#", "/").split("/") if len(piece) > 3]
    url = f"{scheme}://user:{secret}{rest}"
    try:
        found = RedisURL.parse(url)
        told = f"{found} {found!r}"
        assume(rest.startswith("@"))  # else it was a host's name
    except ConfigError as error:
        told = error.message
    vocabulary = "redis_url: " + "".join(SCHEMES)
    assert not [piece for piece in pieces if piece in told and piece not in vocabulary]
