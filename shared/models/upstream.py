"""Upstream server of the runtime "upstream": its address, and what it reports about itself and its models."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
import msgspec
import structlog

from shared.errors import ConfigError, Unavailable
from shared.runtime.bind_safety import loopback
from shared.settings import Settings

ServerKind = Literal["vllm", "sglang", "llamacpp", "other"]
KINDS: dict[str | None, ServerKind] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llamacpp"}  # by `owned_by`
ANSWER_TIMEOUT_S = 10.0
START_TIMEOUT_S = 60.0  # for a server that starts at the same time
MAX_ANSWER_BYTES = 8 * 2**20  # hosted APIs list hundreds of models
MAX_SHOWN_MODELS = 8
RETRY_PAUSE_S = 0.5

log = structlog.get_logger(__name__)


class _Meta(msgspec.Struct):
    n_ctx_train: int | None = None


class _Model(msgspec.Struct):
    id: str
    owned_by: str | None = None
    max_model_len: int | None = None
    meta: _Meta | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Generation(msgspec.Struct):
    n_ctx: int | None = None


class _Props(msgspec.Struct):
    default_generation_settings: _Generation | None = None


@dataclass(frozen=True)
class UpstreamModel:
    """A model at an upstream server, and the kind of server.

    `max_model_len` is in tokens; None if the server does not report it.
    """

    name: str
    kind: ServerKind
    max_model_len: int | None


@dataclass(frozen=True)
class UpstreamAddress:
    """Base URL of an upstream server, without a slash at its end, and the key that it requires."""

    url: str
    key: str

    @classmethod
    def from_settings(cls, settings: Settings) -> UpstreamAddress:
        """Raises ConfigError if no URL or an unusable key is set."""
        url, key = settings.upstream_url, settings.upstream_api_key
        if not url:
            raise ConfigError("upstream_url is required for the runtime upstream", param="upstream_url")
        secret = key.get_secret_value() if key else ""
        if not (secret.isascii() and secret.isprintable() and " " not in secret):
            raise ConfigError(
                "upstream_api_key must consist of printable ASCII characters", param="upstream_api_key"
            )
        return cls(url, secret)

    @property
    def root(self) -> str:
        """The URL without /v1, under which servers have routes of their own."""
        return self.url.removesuffix("/v1")

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of every request to this server. No redirect may be followed: it would get the key."""
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    @property
    def is_own_machine(self) -> bool:
        """Return whether the server runs on this machine, so that no proxy leads to it."""
        return loopback(urlsplit(self.url).hostname or "")

    @property
    def proxy(self) -> str | None:
        """Return the URL of the proxy that the environment names for this server; None if it names none.

        Raises ConfigError for a proxy that cannot be used, such as one of SOCKS.
        """
        parts, proxies = urlsplit(self.url), getproxies()
        if self.is_own_machine or proxy_bypass(parts.hostname or "") or proxy_bypass(parts.netloc):
            return None
        proxy = proxies.get(parts.scheme) or proxies.get("all")
        return _checked(proxy if "://" in proxy else f"http://{proxy}") if proxy else None


def _checked(proxy: str) -> str:
    """Return the URL of a proxy. Raises ConfigError, without the URL, if it cannot be used."""
    try:
        parts, usable = urlsplit(proxy), bool(httpx.URL(proxy).host)
        usable = usable and parts.scheme in ("http", "https") and (parts.port or 1) > 0
    except (httpx.InvalidURL, ValueError):
        usable = False
    if not usable:
        raise ConfigError(
            "the proxy that the environment names for upstream_url must be http://host:port or https://host:port; "
            "to use none, name the upstream server in NO_PROXY",
            param="upstream_url",
        ) from None
    return proxy


def _log_down(reason: str) -> None:
    log.warning("upstream_down", reason=reason)


def with_upstream_model(settings: Settings, report: Callable[[str], None] = _log_down) -> Settings:
    """Return the settings with `upstream_model`; if it is not set, the only one that the server lists.

    `report` is called with each new reason to wait. Raises ConfigError, also if the server does not answer within
    START_TIMEOUT_S.
    """
    if settings.runtime != "upstream" or settings.upstream_model is not None:
        return settings
    return settings.model_copy(update={"upstream_model": await_model(settings, report).name})


def await_model(settings: Settings, report: Callable[[str], None] = _log_down) -> UpstreamModel:
    """Return the settings' upstream model, waiting at most START_TIMEOUT_S for the server.

    `report` is called with each new reason to wait. Raises ConfigError.
    """
    address = UpstreamAddress.from_settings(settings)
    deadline, reason = time.monotonic() + START_TIMEOUT_S, ""
    while True:
        try:
            return find_model(address, settings.upstream_model)
        except Unavailable as error:
            if time.monotonic() >= deadline:
                raise ConfigError(error.message, param="upstream_url") from None
            if error.message != reason:
                report(error.message)
            reason = error.message
            time.sleep(RETRY_PAUSE_S)


def find_model(address: UpstreamAddress, name: str | None) -> UpstreamModel:
    """Return the model of that name at the server, or its only one for None.

    Raises Unavailable if the server does not answer, ConfigError if its answer cannot be used.
    """
    trust = httpx.create_ssl_context()  # with the certificates that the environment names
    with httpx.Client(
        timeout=ANSWER_TIMEOUT_S, headers=address.headers, proxy=address.proxy, trust_env=False, verify=trust
    ) as http:
        found = _decode(_get(http, address, f"{address.url}/models"), _Models, address)
        model = _choose(found.data, name, address)
        kind = KINDS.get(model.owned_by, "other")
        context = _context_of_slot(http, address, model) if kind == "llamacpp" else model.max_model_len
    return UpstreamModel(model.id, kind, context if context is not None and context > 0 else None)


def _context_of_slot(http: httpx.Client, address: UpstreamAddress, model: _Model) -> int | None:
    """Return the context of one request on llama.cpp's server; the model's own if the server does not show it."""
    try:
        props = _decode(_get(http, address, f"{address.root}/props"), _Props, address)
    except (ConfigError, Unavailable):
        props = _Props()
    slot, meta = props.default_generation_settings or _Generation(), model.meta or _Meta()
    return slot.n_ctx or meta.n_ctx_train


def _choose(models: list[_Model], name: str | None, address: UpstreamAddress) -> _Model:
    listed = ", ".join(model.id for model in models[:MAX_SHOWN_MODELS])
    listed += f" and {len(models) - MAX_SHOWN_MODELS} more" if len(models) > MAX_SHOWN_MODELS else ""
    for model in models:
        if name in (model.id, model.id.removesuffix(":latest")) or (name is None and len(models) == 1):
            return model
    if name is None:
        what = f"lists {len(models)} models: set upstream_model to one of {listed}" if models else "lists no model"
        raise ConfigError(f"the upstream server at {address.url} {what}", param="upstream_model")
    raise ConfigError(
        f"upstream_model must be a model that the upstream server at {address.url} lists ({listed or 'none'}), "
        f"got {name}",
        param="upstream_model",
    )


def _get(http: httpx.Client, address: UpstreamAddress, url: str) -> bytes:
    """Return the body of a successful answer. Raises Unavailable, ConfigError."""
    try:
        with http.stream("GET", url) as response:
            if response.status_code != 200:
                raise _refusal(response.status_code, address)
            body = b""
            deadline = time.monotonic() + ANSWER_TIMEOUT_S
            for part in response.iter_bytes():
                body += part
                if len(body) > MAX_ANSWER_BYTES or time.monotonic() > deadline:
                    raise ConfigError(
                        f"the upstream server at {address.url} sent too long an answer to GET {url}",
                        param="upstream_url",
                    )
            return body
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise unreachable(address, error) from None


def _refusal(status: int, address: UpstreamAddress) -> Unavailable | ConfigError:
    """Return the error for an HTTP status of GET /models."""
    if status in (401, 403):
        return ConfigError(
            f"the upstream server at {address.url} refused the key (HTTP {status}): set upstream_api_key",
            param="upstream_api_key",
        )
    if status == 429 or status >= 500:
        return Unavailable(f"the upstream server at {address.url} is not ready (HTTP {status})")
    return ConfigError(
        f"the upstream server at {address.url} lists no models (HTTP {status}): upstream_url must be the base URL "
        "of an OpenAI-compatible API, for example http://127.0.0.1:11434/v1",
        param="upstream_url",
    )


def unreachable(address: UpstreamAddress, error: Exception) -> Unavailable:
    """Return the error for an exchange that failed without a response."""
    return Unavailable(
        f"the upstream server at {address.url} cannot be reached ({str(error).rstrip('.') or type(error).__name__})"
    )


def _decode(body: bytes, kind: type[Any], address: UpstreamAddress) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ConfigError(
            f"the upstream server at {address.url} does not list its models as an OpenAI-compatible API does",
            param="upstream_url",
        ) from None
