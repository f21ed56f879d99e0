"""Discovery of an upstream server's model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from shared.errors import ConfigError
from shared.models import upstream
from shared.models.model_store import ModelRepository
from shared.models.upstream import UpstreamAddress, await_model, find_model, with_upstream_model
from shared.settings import load
from tests.support.fake_upstream import FakeUpstream, json_response, response, serving


@pytest.fixture(scope="module")
def running_server() -> Iterator[FakeUpstream]:
    with serving() as made:
        yield made


@pytest.fixture
def server(running_server: FakeUpstream) -> FakeUpstream:
    running_server.reset()
    return running_server


def settings_for(server: FakeUpstream, **given: Any) -> Any:
    return load({"runtime": "upstream", "upstream_url": server.url, **given}).settings


def test_the_only_model_is_the_default(server: FakeUpstream) -> None:
    settings = with_upstream_model(settings_for(server))
    assert settings.upstream_model == "fake"
    assert ModelRepository(settings).served_name == "fake"
    assert ModelRepository(settings_for(server, served_model_name="mine")).served_name == "mine"


def test_other_runtimes_ask_nobody() -> None:
    settings = load({"upstream_url": "http://127.0.0.1:1/v1"}).settings
    assert with_upstream_model(settings) is settings


@pytest.mark.parametrize(
    ("models", "name", "words"),
    [
        ([{"id": "a"}, {"id": "b"}], None, "lists 2 models: set upstream_model to one of a, b"),
        ([{"id": "a"}], "b", r"lists \(a\), got b"),
        ([], None, "lists no model"),
    ],
)
def test_an_unclear_model_is_refused(
    server: FakeUpstream, models: list[dict[str, Any]], name: str | None, words: str
) -> None:
    server.models = models
    with pytest.raises(ConfigError, match=words) as refused:
        await_model(settings_for(server, upstream_model=name))
    assert refused.value.param == "upstream_model"


@pytest.mark.parametrize(
    ("listed", "kind", "context"),
    [
        ({"id": "m", "owned_by": "vllm", "max_model_len": 4096}, "vllm", 4096),
        ({"id": "m", "owned_by": "llamacpp", "meta": {"n_ctx_train": 2048}}, "llamacpp", 2048),
        ({"id": "m:latest", "owned_by": "library"}, "other", None),
        ({"id": "m", "max_model_len": -1}, "other", None),
    ],
)
def test_kind_and_context_are_reported(
    server: FakeUpstream, listed: dict[str, Any], kind: str, context: int | None
) -> None:
    server.models = [listed]
    found = find_model(UpstreamAddress(server.url, ""), "m")
    assert (found.name, found.kind, found.max_model_len) == (listed["id"], kind, context)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (json_response("401 Unauthorized", {}), "refused the key"),
        (json_response("404 Not Found", {}), "must be the base URL"),
        (response("307 Temporary Redirect", b"", "location: http://127.0.0.1:1/"), "must be the base URL"),
        (json_response("200 OK", ["no models"]), "does not list its models"),
        (response("200 OK", b"\xff" * 10), "does not list its models"),
        (response("200 OK", b" " * (8 * 2**20 + 1)), "too long an answer"),
    ],
    ids=["401", "404", "redirect", "other JSON", "no JSON", "too long"],
)
def test_an_unusable_listing_is_refused(server: FakeUpstream, answer: bytes, words: str) -> None:
    server.listing = answer
    with pytest.raises(ConfigError, match=words):
        await_model(settings_for(server))


def test_a_server_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "START_TIMEOUT_S", 0.0)
    settings = load({"runtime": "upstream", "upstream_url": "http://127.0.0.1:1/v1"}).settings
    with pytest.raises(ConfigError, match=r"http://127.0.0.1:1/v1 cannot be reached"):
        await_model(settings)


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8080/v1",
        "localhost:8080/v1",
        "ftp://h/v1",
        "http://",
        "http://u:p@h/v1",
        "http://h/v1?a=b",
        "http://h:99999999/v1",
        "http://[::1/v1",
        "http://a b/v1",
        "http://a..b/v1",
        "http://-a-.é/v1",
        f"http://{'a' * 64}/v1",
        "http://h/v1\x01",
    ],
)
def test_an_unusable_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"upstream_url \(from flag\): must be http"):
        load({"upstream_url": url})


def test_a_name_is_required_where_the_server_is_not_asked() -> None:
    with pytest.raises(ConfigError, match="upstream_model or served_model_name is required"):
        ModelRepository(load({"runtime": "upstream", "upstream_url": "http://h/v1"}).settings)


@pytest.mark.parametrize(
    "proxy", ["socks5://me:secret@proxy:1080", "nonsense://proxy", "http://", "http://[::1", "h:x"]
)
def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(ConfigError, match="the proxy that the environment names") as refused:
        find_model(UpstreamAddress("http://models.example:8000/v1", ""), None)
    assert "secret" not in refused.value.message


def test_a_server_without_a_proxy_may_be_named_with_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", "models.example:8000,[::2]:80,::3")
    hosts = ("models.example:8000", "models.example", "[::2]:80", "[::3]:9", "[::4]:80")
    proxies = [UpstreamAddress(f"http://{host}/v1", "").proxy for host in hosts]
    assert proxies == [None, "http://proxy:1", None, None, "http://proxy:1"]
