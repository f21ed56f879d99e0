"""The setting `redis_url`: its forms, and the servers that it names.

| URL | meaning |
| --- | --- |
| redis://[user:password@]host:6379/0 | one server; rediss:// with TLS |
| unix://[user:password@]/path/to/socket?db=0 | one server's socket |
| redis+sentinel://[user:password@]host:26379,host:26379/service/0 | the master that the Sentinels name |
| redis+cluster://[user:password@]host:6379,host:6379 | a Cluster; any node leads to the others |

`rediss+sentinel` and `rediss+cluster` are the same with TLS. No error message shows any part of
the URL in which a password could be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from shared.errors import ConfigError
from shared.numbers import whole

Host = tuple[str, int]
Kind = Literal["server", "socket", "sentinel", "cluster"]

SCHEMES: Mapping[str, Kind] = {
    "redis": "server",
    "rediss": "server",
    "unix": "socket",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
PORTS: Mapping[Kind, int] = {"server": 6379, "sentinel": 26379, "cluster": 6379}
HIDDEN = "***"


@dataclass(frozen=True)
class RedisURL:
    """Validated URL; `str` hides its password.

    Args:
        hosts: addresses to connect to first; empty for a socket.
        options: redis-py's arguments for a connection, with the password.
        service: the master's name, for Sentinel.
        sentinel: redis-py's arguments for a connection to a Sentinel, besides those for TLS.
    """

    kind: Kind
    tls: bool
    hosts: tuple[Host, ...]
    options: Mapping[str, Any] = field(repr=False)
    service: str = ""
    sentinel: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str) -> RedisURL:
        """Validate a URL. Raises ConfigError."""
        try:
            parts = urlsplit(url)
        except ValueError:
            raise _wrong("must be a URL") from None
        kind = SCHEMES.get(parts.scheme)
        if kind is None:
            raise _wrong(f"must begin with one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
        if "@" in parts.path + parts.query + parts.fragment or parts.fragment:
            raise _wrong("/ ? # @ in a user, password or path must be written as %2F %3F %23 %40")
        tls = parts.scheme.startswith("rediss")
        user, hosts = _authority(parts, kind)
        query = _query(parts.query, kind, tls)
        sentinel = {name.removeprefix("sentinel_"): query.pop(name) for name in _SENTINEL if name in query}
        path, service = _path(parts.path, kind)
        return cls(kind, tls, hosts, user | path | query, service, sentinel)

    @property
    def tls_options(self) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if name in _TLS}

    def __str__(self) -> str:
        scheme = next(name for name, kind in SCHEMES.items() if kind == self.kind)
        scheme = scheme.replace("redis", "rediss") if self.tls else scheme
        user = self.options.get("username", "")
        secret = f":{HIDDEN}" if "password" in self.options else ""
        at = "@" if user or secret else ""
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        path = {
            "server": f"/{self.options.get('db', 0)}",
            "socket": self.options.get("path", ""),
            "sentinel": f"/{self.service}/{self.options.get('db', 0)}",
            "cluster": "",
        }
        return f"{scheme}://{user}{secret}{at}{hosts}{path[self.kind]}"


def _wrong(reason: str) -> ConfigError:
    return ConfigError(f"redis_url: {reason}", param="redis_url")


def _authority(parts: SplitResult, kind: Kind) -> tuple[dict[str, str], tuple[Host, ...]]:
    """Return user and password, and the hosts."""
    who, _, where = parts.netloc.rpartition("@")
    name, _, secret = who.partition(":")
    user = {"username": unquote(name)} if name else {}
    if secret:
        user["password"] = unquote(secret)
    if kind == "socket":
        if where:
            raise _wrong("unix:// must be followed by a path, with three slashes: unix:///run/redis.sock")
        return user, ()
    if kind == "server" and not where:
        where = "localhost"
    return user, tuple(_host(text, PORTS[kind], number) for number, text in enumerate(where.split(","), 1))


def _host(text: str, default: int, number: int) -> Host:
    found = re.fullmatch(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]:\s]+)(:(?P<port>[0-9]{1,5}))?", text)
    port = int(found["port"] or default) if found else 0
    if not found or not 1 <= port <= 65535:
        raise _wrong(f"host {number} must have the form host:port, with a port from 1 to 65535")
    return unquote(found["host"].strip("[]")), port


def _path(path: str, kind: Kind) -> tuple[dict[str, Any], str]:
    """Return the database or socket path, and the Sentinels' service."""
    if kind == "socket":
        if not path:
            raise _wrong("unix:// needs the path of a socket")
        return {"path": unquote(path)}, ""
    parts = [unquote(part) for part in path.split("/") if part]
    service = ""
    if kind == "sentinel":
        if not parts:
            raise _wrong("Sentinel needs the name of the master: redis+sentinel://host:26379/service")
        service = parts.pop(0)
    if len(parts) > 1 or (parts and whole(parts[0]) is None):
        raise _wrong("the database after the last / must be a number")
    database = int(parts[0]) if parts else 0
    if kind == "cluster" and database:
        raise _wrong("a Cluster only has database 0")
    return ({"db": database} if database else {}), service


def _file(text: str) -> str:
    if not Path(text).is_file():
        raise ValueError("no such file")
    return text


def _folder(text: str) -> str:
    if not Path(text).is_dir():
        raise ValueError("no such folder")
    return text


def _boolean(text: str) -> bool:
    if text.lower() not in {"true", "false", "yes", "no", "1", "0"}:
        raise ValueError("must be true or false")
    return text.lower() in {"true", "yes", "1"}


def _cert_reqs(text: str) -> str:
    if text not in {"required", "optional", "none"}:
        raise ValueError("must be required, optional or none")
    return text


def _database(text: str) -> int:
    if (number := whole(text)) is None:
        raise ValueError("must be a number")
    return number


_TLS: Mapping[str, Callable[[str], Any]] = {
    "ssl_ca_certs": _file,
    "ssl_ca_path": _folder,
    "ssl_certfile": _file,
    "ssl_keyfile": _file,
    "ssl_password": str,
    "ssl_ciphers": str,
    "ssl_cert_reqs": _cert_reqs,
    "ssl_check_hostname": _boolean,
}
_SENTINEL: Mapping[str, Callable[[str], Any]] = {"sentinel_username": str, "sentinel_password": str}
_OTHER: Mapping[Kind, Mapping[str, Callable[[str], Any]]] = {
    "server": {"db": _database},
    "socket": {"db": _database},
    "sentinel": {"db": _database, **_SENTINEL},
    "cluster": {},
}


def _query(text: str, kind: Kind, tls: bool) -> dict[str, Any]:
    """Return the options under redis-py's documented names; options that change how calls are made are not allowed.

    The error for an unknown option gives only its position: its name may be the rest of a password.
    """
    allowed = {**_OTHER[kind], **(_TLS if tls else {})}
    found: dict[str, Any] = {}
    for number, (name, value) in enumerate(parse_qsl(text, keep_blank_values=True), 1):
        if name in _TLS and not tls:
            raise _wrong(f"{name} needs TLS: the URL must begin with rediss")
        if name not in allowed:
            known = f"allowed: {', '.join(allowed)}" if allowed else "none is allowed"
            raise _wrong(f"option {number} after the ? is unknown; {known}")
        if name in found:
            raise _wrong(f"{name} is given twice")
        try:
            found[name] = allowed[name](value)
        except ValueError as error:
            raise _wrong(f"{name}: {error}") from None
    return found
