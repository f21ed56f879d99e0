"""Redis permissions of the API, the worker and the tasks process: as ACL rules, and as a check on a server.

A script runs its commands with the permissions of its caller, so the commands of the Lua files are included.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from redis.exceptions import NoPermissionError

from shared.redis.node import Client

Role = Literal["api", "worker", "tasks"]

_COMMON = (
    "ping time eval evalsha publish subscribe unsubscribe del exists get pexpire set srem "
    "hdel hexists hget hgetall hincrby hlen hmget hset xadd xrange zadd zcard zcount zrange zrangebyscore zrem "
    "zscore"
)
_API = (
    "hkeys hscan hsetnx pttl sadd scan smembers xack xclaim xdel xgroup|create xgroup|delconsumer xinfo|consumers "
    "xlen xpending xreadgroup xrevrange zrank zrevrange zrevrank"
)
_WORKER = (
    "hsetnx pttl sadd smembers xack xclaim xdel xgroup|create xlen xpending xreadgroup zincrby zremrangebyscore"
)
_TASKS = (  # with those of Celery
    "hkeys pttl zrank brpop client|setinfo exec llen lpush multi rpush sadd script|load setex smembers unwatch "
    "watch"
)
COMMANDS: Mapping[Role, tuple[str, ...]] = {
    "api": tuple(f"{_COMMON} {_API}".split()),
    "worker": tuple(f"{_COMMON} {_WORKER}".split()),
    "tasks": tuple(f"{_COMMON} {_TASKS}".split()),
}
CLUSTER_COMMANDS = ("asking", "cluster|slots")  # in addition, on a Cluster

_KEY = "hr:doctor"
_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "ping": (),
    "exec": (),
    "multi": (),
    "unwatch": (),
    "brpop": (_KEY, "1"),
    "client|setinfo": ("lib-name", "x"),
    "script|load": ("return 1",),
    "watch": (_KEY,),
    "time": (),
    "asking": (),
    "cluster|slots": (),
    "eval": ("return 1", "0"),
    "evalsha": ("0" * 40, "0"),
    "del": (_KEY,),
    "exists": (_KEY,),
    "publish": (_KEY, ""),
    "subscribe": (_KEY,),
    "unsubscribe": (_KEY,),
    "xreadgroup": ("GROUP", "g", "c", "STREAMS", _KEY, ">"),
}
_CHECK_SCRIPT = """
local missing = {}
for i, words in ipairs(cjson.decode(ARGV[1])) do
  local known, allowed = pcall(redis.acl_check_cmd, unpack(words))
  if not (known and allowed) then missing[#missing + 1] = i end
end
return missing
"""


def acl_rule(role: Role, *, cluster: bool = False) -> str:
    """Return the command that creates the user of a role, with no other permissions."""
    commands = " ".join(f"+{command}" for command in (*COMMANDS[role], *(CLUSTER_COMMANDS if cluster else ())))
    return f"ACL SETUSER headrace-{role} reset on >PASSWORD ~hr:* &hr:* {commands}"


async def missing_commands(client: Client, role: Role, *, cluster: bool = False) -> list[str]:
    """Return the commands of a role that the client's user may not run, without running any of them."""
    commands = (*COMMANDS[role], *(CLUSTER_COMMANDS if cluster else ()))
    calls = [[*command.split("|"), *_ARGUMENTS.get(command, (_KEY, "a", "b", "c"))] for command in commands]
    try:
        found = await client.eval(_CHECK_SCRIPT, 0, json.dumps(calls))
    except NoPermissionError:
        return ["eval"]
    return [commands[i - 1] for i in found]
