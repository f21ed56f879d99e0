"""Looks at a Redis or Valkey as Headrace needs it: version, topology, persistence, memory, permissions.

It reads INFO and CONFIG GET, which the least users of docs/redis.md may not: then it says so, and checks the
permissions alone. Of a Cluster it looks at every primary and tells the worst.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redis.exceptions import NoPermissionError, ResponseError

from headrace.doctor.finding import Finding
from headrace.doctor.redis_acl import Role, lacking
from headrace.doctor.redis_sizing import MEASURED, PROMPT, TOKENS
from shared.backend import Backend
from shared.errors import HeadraceError
from shared.redis.cluster import Cluster
from shared.redis.node import Client
from shared.redis.sentinel import Master
from shared.settings import Settings

LEAST_VERSION = (7, 0)
LEAST_BUFFER = 8 * 2**20  # bytes of messages that may wait for one API process
MIB = 2**20
ORDER = ("ok", "warning", "failed")

Facts = Mapping[str, Any]


async def examine_redis(settings: Settings) -> list[Finding]:
    """All findings about `redis_url`; one that failed where it cannot be used."""
    backend = None
    try:
        backend = Backend.open(settings)
        await backend.start()
        server = backend.server
        assert server is not None, "it was opened on Redis"
        async with server.reaching("Redis"):
            client = server.client
            return [*await _servers(client, settings), *await _permissions(client)]
    except HeadraceError as error:
        remedy = "start it, or correct redis_url; without one `headrace up` brings its own"
        return [Finding("Redis", "failed", error.message, remedy)]
    finally:
        if backend is not None:
            await backend.close()


async def _servers(client: Client, settings: Settings) -> list[Finding]:
    primaries = await client.primaries()
    try:
        infos = [await primary.info() for primary in primaries]
    except NoPermissionError:
        return [Finding("Redis", "warning", "this user may not INFO", "run doctor once as an administrator")]
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
    worst = [max(same, key=lambda finding: ORDER.index(finding.status)) for same in zip(*all_findings, strict=True)]
    return [worst[0], _topology(client, infos), *worst[1:]]


async def _config(client: Client) -> dict[str, str]:
    """What CONFIG GET tells; nothing where it is forbidden, as managed services do."""
    try:
        found = await client.config_get("appendfsync", "save", "client-output-buffer-limit")
        return {str(name): str(value) for name, value in found.items()}
    except ResponseError:
        return {}


def _version(info: Facts) -> Finding:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) >= LEAST_VERSION:
        return Finding("Redis", "ok", f"{name} {version}")
    return Finding("Redis", "failed", f"{name} {version}", "use Redis 7.0 or newer, or Valkey 8 or newer")


def _topology(client: Client, infos: Sequence[Facts]) -> Finding:
    replicas = sum(int(info["connected_slaves"]) for info in infos)
    copies = f"{replicas} replica{'' if replicas == 1 else 's'}"
    if isinstance(client, Cluster):
        return Finding("topology", "ok", f"Cluster: {len(infos)} primaries, {copies}")
    [info] = infos
    if info.get("cluster_enabled"):
        return Finding("topology", "failed", "a Cluster's node", "begin redis_url with redis+cluster://")
    if info["role"] != "master":
        return Finding("topology", "failed", "a replica: it takes no writes", "name the master, or its Sentinels")
    if isinstance(client, Master):
        return Finding("topology", "ok", f"Sentinel: a master with {copies}")
    return Finding("topology", "ok", f"one server with {copies}" if replicas else "one server")


def _persistence(info: Facts, config: Mapping[str, str]) -> Finding:
    what = "persistence"
    if not info.get("aof_enabled"):
        remedy = "set appendonly yes"
        if config.get("save") or (not config and info.get("rdb_last_save_time")):
            return Finding(what, "warning", "snapshots only: any crash loses all since the last one", remedy)
        return Finding(what, "warning", "none: a restart loses all accepted work", remedy)
    if info.get("aof_last_write_status", "ok") != "ok":
        return Finding(what, "failed", "the append-only file cannot be written", "free disk space, see its log")
    mode = config.get("appendfsync")
    if mode == "no":
        found = "append-only file, written when the system likes: a machine crash loses what was not, often 30 s"
        return Finding(what, "warning", found, "set appendfsync everysec")
    lost = {
        "always": "fsync before each answer: no crash loses accepted work",
        "everysec": "fsync each second: a machine crash loses the last second at most, a process crash nothing",
    }
    return Finding(
        what, "ok", f"append-only file, {lost.get(str(mode), 'its fsync mode is not told to this user')}"
    )


def _eviction(info: Facts) -> Finding:
    policy = str(info.get("maxmemory_policy"))
    if policy == "noeviction":
        return Finding("eviction", "ok", policy)
    return Finding("eviction", "failed", policy, "set maxmemory-policy noeviction: evicted keys are lost answers")


def _memory(info: Facts, settings: Settings) -> Finding:
    """What fits beside a full queue of one model, by the formulas of docs/redis.md."""
    queue = settings.queue_depth * MEASURED.waiting(PROMPT)
    answer = MEASURED.finished(TOKENS)
    used, most = int(info["used_memory"]), int(info["maxmemory"])
    bound = most or int(info.get("total_system_memory", 0))
    room = max(0, int((bound - used - queue) / answer))
    found = (
        f"{used / MIB:.0f} of {bound / MIB:,.0f} MiB used{'' if most else ' in the machine, no maxmemory'}; "
        f"a full queue of one model takes {queue / MIB:.0f} MiB, and beside it fit {room:,} answers of {TOKENS} "
        f"tokens: {room / settings.result_ttl:.1f} a second, each kept {settings.result_ttl:.0f} s"
    )
    if not most:
        return Finding("memory", "warning", found, "set maxmemory to half of the memory: a rewrite may double it")
    if room < settings.queue_depth:
        return Finding("memory", "failed", found, "raise maxmemory, or lower queue_depth or result_ttl")
    return Finding("memory", "ok", found)


def _buffers(config: Mapping[str, str]) -> Finding:
    what = "message buffer"
    words = config.get("client-output-buffer-limit", "").split()
    if "pubsub" not in words:
        return Finding(what, "warning", "not told to this user", "run doctor once as an administrator")
    hard = int(words[words.index("pubsub") + 1])
    found = f"{hard / MIB:.0f} MiB for each API process" if hard else "unbounded"
    if hard >= LEAST_BUFFER:
        return Finding(what, "ok", found)
    return Finding(what, "warning", found, "set client-output-buffer-limit pubsub 32mb 8mb 60")


async def _permissions(client: Client) -> list[Finding]:
    """A user needs what its own process does, the API's, the worker's or the tasks'; an all-in-one has all."""
    roles: tuple[Role, ...] = ("api", "worker", "tasks")
    missing = {role: await lacking(client, role, cluster=isinstance(client, Cluster)) for role in roles}
    can = [role for role in roles if not missing[role]]
    if len(can) == len(roles):
        return [Finding("permissions", "ok", "this user may do what all processes need")]
    lacks = "; ".join(f"the {role} lacks {' '.join(missing[role])}" for role in roles if missing[role])
    if can:
        return [Finding("permissions", "ok", f"this user may do what the {can[0]} needs ({lacks})")]
    return [Finding("permissions", "failed", lacks, "see the ACL lines in docs/redis.md")]
