"""`headrace doctor` on servers with various settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.cli.main import app
from headrace.doctor.finding import Finding
from headrace.doctor.redis_acl import acl_rule
from headrace.doctor.redis_checks import _version, examine_redis
from headrace.doctor.redis_sizing import MEASURED
from shared.runtime.sockets import free_port
from tests.support.redis_servers import HOST, Node, running, settings_for
from tests.support.typer_internals import CliRunner


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "node", "appendonly yes", "maxmemory 1gb")
    with running(made):
        yield made


async def examine(url: str, folder: Path, **settings: object) -> dict[str, Finding]:
    return {finding.what: finding for finding in await examine_redis(settings_for(url, folder, **settings))}


async def test_a_good_server_has_only_ok_findings(node: Node, tmp_path: Path) -> None:
    found = await examine(node.url, tmp_path)
    assert list(found) == [
        "Redis", "topology", "persistence", "eviction", "memory", "message buffer", "permissions", "models"
    ]  # fmt: skip
    assert {finding.status for finding in found.values()} == {"ok"}
    assert found["topology"].found == "one server"
    assert "the last second at most" in found["persistence"].found


@pytest.mark.parametrize(
    ("setting", "value", "what", "status", "expected_text"),
    [
        ("appendfsync", "always", "persistence", "ok", "no crash loses"),
        ("appendfsync", "no", "persistence", "warning", "often 30 s"),
        ("appendonly", "no", "persistence", "warning", "a restart loses all"),
        ("maxmemory-policy", "allkeys-lru", "eviction", "failed", "allkeys-lru"),
        ("maxmemory", "0", "memory", "warning", "maxmemory is not set"),
        ("maxmemory", "5mb", "memory", "failed", "of 5 MiB used"),
        ("client-output-buffer-limit", "pubsub 0 0 0", "message buffer", "warning", "unbounded"),
        ("client-output-buffer-limit", "pubsub 1mb 1mb 60", "message buffer", "warning", "1 MiB"),
    ],
)
async def test_wrong_server_settings_are_reported(
    node: Node, tmp_path: Path, setting: str, value: str, what: str, status: str, expected_text: str
) -> None:
    node.call("CONFIG", "SET", setting, value)
    found = (await examine(node.url, tmp_path))[what]
    assert (found.status, expected_text in found.found) == (status, True), found
    assert bool(found.remedy) == (status != "ok")


async def test_snapshots_without_aof_are_reported(node: Node, tmp_path: Path) -> None:
    node.call("CONFIG", "SET", "appendonly", "no")
    node.call("CONFIG", "SET", "save", "60 1")
    assert "all work since the last one" in (await examine(node.url, tmp_path))["persistence"].found


async def test_a_replica_fails(node: Node, tmp_path: Path) -> None:
    node.call("REPLICAOF", HOST, free_port(HOST))
    assert (await examine(node.url, tmp_path))["topology"].status == "failed"


def test_old_versions_fail() -> None:
    assert _version({"redis_version": "6.2.14"}).status == "failed"
    assert _version({"redis_version": "7.0.15"}).found == "Redis 7.0.15"
    assert _version({"redis_version": "7.2.4", "valkey_version": "9.1.2"}).found == "Valkey 9.1.2"


async def test_permissions_are_checked_without_info(node: Node, tmp_path: Path) -> None:
    node.call(*acl_rule("api").replace("PASSWORD", "secret").split())
    url = f"redis://headrace-api:secret@{HOST}:{node.port}"
    found = await examine(url, tmp_path)
    assert (found["Redis"].status, found["permissions"].status) == ("warning", "ok")
    assert "has the permissions of the api process (the worker process also needs" in found["permissions"].found
    node.call("ACL", "SETUSER", "headrace-api", "-xadd")
    found = await examine(url, tmp_path)
    assert found["permissions"].status == "failed"
    assert "the api process also needs xadd" in found["permissions"].found
    node.call("ACL", "SETUSER", "headrace-api", "+info")
    assert (await examine(url, tmp_path))["message buffer"].status == "warning"  # INFO, but no CONFIG


@pytest.mark.parametrize("url", ["redis://me:secret@127.0.0.1:1", "redis://me:secret@127.0.0.1:x"])
def test_an_unusable_redis_url_fails_without_secrets(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["doctor", "--json", "--model", "scripted", "--redis-url", url])
    assert result.exit_code == 1
    assert "secret" not in result.output
    found = {finding["what"]: finding for finding in json.loads(result.output)}
    assert found["Redis"]["status"] == "failed"


def test_the_documented_formulas_match() -> None:
    text = (Path(__file__).parents[3] / "docs" / "redis.md").read_text(encoding="utf-8")
    for formula in (MEASURED.waiting, MEASURED.finished):
        assert f"{formula.base:g} + {formula.each:g} ×" in text
