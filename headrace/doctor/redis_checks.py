"""Checks of a Redis or Valkey server: version, topology, persistence, memory, permissions.

They read INFO and CONFIG GET, which the minimal users of docs/redis.md may not run; then only the permissions are
checked. On a Cluster, every primary is checked, and the worst finding is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redis.exceptions import NoPermissionError, ResponseError

from headrace.doctor.finding import Finding
from headrace.doctor.model_checks import examine_models
from headrace.doctor.redis_acl import Role, missing_commands
from headrace.doctor.redis_sizing import EXAMPLE_ANSWER_TOKENS, EXAMPLE_PROMPT_BYTES, MEASURED
from shared.backend import Backend
from shared.errors import HeadraceError
from shared.redis.cluster import Cluster
from shared.redis.node import Client
from shared.redis.sentinel import Master
from shared.settings import Settings

MIN_VERSION = (7, 0)
MIN_BUFFER_BYTES = 8 * 2**20  # of messages that wait for one API process
MIB = 2**20
SEVERITY = ("ok", "warning", "failed")

RedisInfo = Mapping[str, Any]


async def examine_redis(settings: Settings) -> list[Finding]:
    """Run all checks of `redis_url`. Return one failed finding if it cannot be used."""
    backend = None
    try:
        backend = Backend.open(settings)
        await backend.start()
        server = backend.server
        assert server is not None, "the backend was opened on Redis"
        async with server.reaching("Redis"):
            client = server.client
            findings = [*await _servers(client, settings), *await _permissions(client)]
        return [*findings, *await examine_models(backend.registry, settings)]
    except HeadraceError as error:
        remedy = "start it, or correct redis_url; without redis_url, `headrace up` starts an embedded Valkey"
        return [Finding("Redis", "failed", error.message, remedy)]
    finally:
        if backend is not None:
            await backend.close()


async def _servers(client: Client, settings: Settings) -> list[Finding]:
    primaries = await client.primaries()
    try:
        infos = [await primary.info() for primary in primaries]
    except NoPermissionError:
        return [Finding("Redis", "warning", "this user may not run INFO", "run doctor once as an administrator")]
    configs = [await _config(primary) for primary in primaries]
    all_findings = [
        [
            _version(info),
            _persistence(info, config),
            _eviction(info),
            _memory(info, settings),
            _buffers(config),
        ]
        for info, config in zip(infos, configs, strict=True)
    ]
    worst = [
        max(same, key=lambda finding: SEVERITY.index(finding.status)) for same in zip(*all_findings, strict=True)
    ]
    return [worst[0], _topology(client, infos), *worst[1:]]


async def _config(client: Client) -> dict[str, str]:
    """Return the settings of the server; empty if CONFIG GET is forbidden, as in managed services."""
    try:
        found = await client.config_get("appendfsync", "save", "client-output-buffer-limit")
        return {str(name): str(value) for name, value in found.items()}
    except ResponseError:
        return {}


def _version(info: RedisInfo) -> Finding:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) >= MIN_VERSION:
        return Finding("Redis", "ok", f"{name} {version}")
    return Finding("Redis", "failed", f"{name} {version}", "use Redis 7.0 or newer, or Valkey 8 or newer")


def _topology(client: Client, infos: Sequence[RedisInfo]) -> Finding:
    replicas = sum(int(info["connected_slaves"]) for info in infos)
    copies = f"{replicas} replica{'' if replicas == 1 else 's'}"
    if isinstance(client, Cluster):
        return Finding("topology", "ok", f"Cluster: {len(infos)} primaries, {copies}")
    [info] = infos
    if info.get("cluster_enabled"):
        return Finding("topology", "failed", "a node of a Cluster", "start redis_url with redis+cluster://")
    if info["role"] != "master":
        return Finding(
            "topology",
            "failed",
            "a replica: it accepts no writes",
            "set redis_url to the master, or to its Sentinels",
        )
    if isinstance(client, Master):
        return Finding("topology", "ok", f"Sentinel: a master with {copies}")
    return Finding("topology", "ok", f"one server with {copies}" if replicas else "one server")


def _persistence(info: RedisInfo, config: Mapping[str, str]) -> Finding:
    what = "persistence"
    if not info.get("aof_enabled"):
        remedy = "set appendonly yes"
        if config.get("save") or (not config and info.get("rdb_last_save_time")):
            return Finding(what, "warning", "snapshots only: any crash loses all work since the last one", remedy)
        return Finding(what, "warning", "none: a restart loses all accepted work", remedy)
    if info.get("aof_last_write_status", "ok") != "ok":
        return Finding(
            what, "failed", "the append-only file cannot be written", "free disk space; see the log of Redis"
        )
    mode = config.get("appendfsync")
    if mode == "no":
        found = "append-only file without fsync: a machine crash loses what was not yet written, often 30 s"
        return Finding(what, "warning", found, "set appendfsync everysec")
    losses = {
        "always": "fsync before each answer: no crash loses accepted work",
        "everysec": "fsync each second: a machine crash loses the last second at most, a process crash nothing",
    }
    return Finding(
        what, "ok", f"append-only file, {losses.get(str(mode), 'its fsync mode is not visible to this user')}"
    )


def _eviction(info: RedisInfo) -> Finding:
    policy = str(info.get("maxmemory_policy"))
    if policy == "noeviction":
        return Finding("eviction", "ok", policy)
    return Finding("eviction", "failed", policy, "set maxmemory-policy noeviction: an evicted key is a lost answer")


def _memory(info: RedisInfo, settings: Settings) -> Finding:
    """Estimate how many answers fit beside a full queue of one model, by the formulas of docs/redis.md."""
    queue = settings.queue_depth * MEASURED.waiting(EXAMPLE_PROMPT_BYTES)
    answer = MEASURED.finished(EXAMPLE_ANSWER_TOKENS)
    used, most = int(info["used_memory"]), int(info["maxmemory"])
    bound = most or int(info.get("total_system_memory", 0))
    room = max(0, int((bound - used - queue) / answer))
    total = f"{bound / MIB:,.0f} MiB used" + ("" if most else " in the machine, maxmemory is not set")
    found = (
        f"{used / MIB:.0f} of {total}; a full queue of one model takes {queue / MIB:.0f} MiB, which leaves "
        f"room for {room:,} answers of {EXAMPLE_ANSWER_TOKENS} tokens: {room / settings.result_ttl:.1f} per "
        f"second, each kept for {settings.result_ttl:.0f} s"
    )
    if not most:
        return Finding(
            "memory",
            "warning",
            found,
            "set maxmemory to half of the memory: a rewrite of the append-only file may double the use",
        )
    if room < settings.queue_depth:
        return Finding("memory", "failed", found, "raise maxmemory, or lower queue_depth or result_ttl")
    return Finding("memory", "ok", found)


def _buffers(config: Mapping[str, str]) -> Finding:
    what = "message buffer"
    words = config.get("client-output-buffer-limit", "").split()
    if "pubsub" not in words:
        return Finding(what, "warning", "not visible to this user", "run doctor once as an administrator")
    hard = int(words[words.index("pubsub") + 1])
    found = f"{hard / MIB:.0f} MiB for each API process" if hard else "unbounded"
    if hard >= MIN_BUFFER_BYTES:
        return Finding(what, "ok", found)
    return Finding(what, "warning", found, "set client-output-buffer-limit pubsub 32mb 8mb 60")


async def _permissions(client: Client) -> list[Finding]:
    """Check that the user has the permissions of at least one process: the API, the worker or the tasks."""
    roles: tuple[Role, ...] = ("api", "worker", "tasks")
    missing = {role: await missing_commands(client, role, cluster=isinstance(client, Cluster)) for role in roles}
    allowed = [role for role in roles if not missing[role]]
    if len(allowed) == len(roles):
        return [Finding("permissions", "ok", "this user has the permissions of all processes")]
    needs = "; ".join(f"the {role} process also needs {' '.join(missing[role])}" for role in roles if missing[role])
    if allowed:
        found = f"this user has the permissions of the {allowed[0]} process ({needs})"
        return [Finding("permissions", "ok", found)]
    return [Finding("permissions", "failed", needs, "see the ACL lines in docs/redis.md")]
