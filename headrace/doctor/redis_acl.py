"""What the API, the worker and the tasks must be allowed in Redis: as ACL rules, and as a question to a server.

A script runs its commands as the user who called it, so the commands of the Lua files are among these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from redis.exceptions import NoPermissionError

from shared.redis.node import Client

Role = Literal["api", "worker", "tasks"]

_BOTH = (
    "ping time eval evalsha publish subscribe unsubscribe del exists pexpire set srem "
    "hdel hexists hget hgetall hincrby hlen hmget hset xadd xrange zadd zcard zrange zrangebyscore zrem zscore"
)
_API = "get scan smembers xgroup|delconsumer xinfo|consumers xlen zrank zrevrange zrevrank"
_WORKER = "hsetnx sadd xack xautoclaim xclaim xdel xgroup|create xpending xreadgroup zremrangebyscore"
_TASKS = (  # Celery's among them
    "get zrank brpop client|setinfo exec llen lpush multi rpush sadd script|load setex smembers unwatch watch"
)
COMMANDS: Mapping[Role, tuple[str, ...]] = {
    "api": tuple(f"{_BOTH} {_API}".split()),
    "worker": tuple(f"{_BOTH} {_WORKER}".split()),
    "tasks": tuple(f"{_BOTH} {_TASKS}".split()),
}
CLUSTER = ("asking", "cluster|slots")  # beside those, on a Cluster

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
_ASK = """
local lacking = {}
for i, words in ipairs(cjson.decode(ARGV[1])) do
  local known, allowed = pcall(redis.acl_check_cmd, unpack(words))
  if not (known and allowed) then lacking[#lacking + 1] = i end
end
return lacking
"""


def rule(role: Role, *, cluster: bool = False) -> str:
    """The line that makes the user of a role, with everything else forbidden."""
    commands = " ".join(f"+{command}" for command in (*COMMANDS[role], *(CLUSTER if cluster else ())))
    return f"ACL SETUSER headrace-{role} reset on >PASSWORD ~hr:* &hr:* {commands}"


async def lacking(client: Client, role: Role, *, cluster: bool = False) -> list[str]:
    """The commands of a role that the client's user may not run, asked without running any of them."""
    commands = (*COMMANDS[role], *(CLUSTER if cluster else ()))
    questions = [[*command.split("|"), *_ARGUMENTS.get(command, (_KEY, "a", "b", "c"))] for command in commands]
    try:
        found = await client.eval(_ASK, 0, json.dumps(questions))
    except NoPermissionError:
        return ["eval"]
    return [commands[i - 1] for i in found]
