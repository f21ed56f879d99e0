"""Lua scripts: each command is loaded with the guard in front of it, and called many times in one round trip."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from redis.exceptions import NoScriptError

from shared.redis.client import RedisServer
from shared.redis.lua_text import for_command
from shared.redis.node import Command, WireKeys, pack, pack_call

GUARD = Path(__file__).with_name("guard.lua")
# The lease primitive, in the two parts that a script may need.
LEASE_EPOCH = Path(__file__).with_name("lease_epoch.lua")
LEASE_DEADLINE = Path(__file__).with_name("lease_deadline.lua")
SCRIPT = """%s
local reply = (function()
%s
end)()
if foreign[1] then return { MARK, foreign, reply } end
return reply
"""
MARK = b"hr:foreign"  # as in guard.lua

ScriptCall = tuple[Sequence[str] | WireKeys, Sequence[Any]]  # keys and arguments


@cache
def _loaded(files: tuple[Path, ...], command: str) -> tuple[str, str]:
    """Return the text of a command of the script of these files, and its SHA-1 digest."""
    joined = "\n".join(file.read_text(encoding="utf-8") for file in files)
    text = SCRIPT % (GUARD.read_text(encoding="utf-8"), for_command(joined, command))
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Script:
    """Lua files that form one script; its first argument names one of its commands.

    Each command is loaded with the parts of the script that it needs, and again after a server restart. The keys of
    one call share a slot, unless the client `joins_slots`. What a call had to set aside is noted as foreign entries
    of `structure`.

    Args:
        files: joined in this order, so that each sees the locals of those before it; the last runs the command.
    """

    def __init__(self, server: RedisServer, structure: str, *files: Path) -> None:
        self._redis = server.client
        self._foreign = server.foreign
        self._structure = structure
        self._files = files

    async def __call__(self, command: str, keys: Sequence[str], *args: Any) -> Any:
        [result] = await self.many(command, [(keys, args)])
        return result

    async def many(self, command: str, calls: Sequence[ScriptCall]) -> list[Any]:
        """Run many calls in one round trip; raise the first error.

        Calls to a server that does not have the script yet are sent again with its text.
        """
        text, sha = _loaded(self._files, command)
        results = await self._run("EVALSHA", sha, command, calls)
        missed = [i for i, result in enumerate(results) if isinstance(result, NoScriptError)]
        if missed:
            again = await self._run("EVAL", text, command, [calls[i] for i in missed])
            for i, result in zip(missed, again, strict=True):
                results[i] = result
        for result in results:
            if isinstance(result, Exception):
                raise result
        return [self._without_report(result) for result in results]

    def _without_report(self, result: Any) -> Any:
        """Return the command's own reply; note what it set aside."""
        if not isinstance(result, list) or not result or result[0] != MARK:
            return result
        for place, reason in result[1]:
            self._foreign.note(self._structure, place, reason.decode())
        return result[2] if len(result) > 2 else None  # a nil ends a reply of Lua

    async def _run(self, how: str, script: str, command: str, calls: Sequence[ScriptCall]) -> list[Any]:
        return await self._redis.exchange([_packed(how, script, command, *call) for call in calls])


def _packed(how: str, script: str, command: str, keys: Sequence[str] | WireKeys, args: Sequence[Any]) -> Command:
    if isinstance(keys, WireKeys):
        return keys.first, pack_call((how, script, keys.count), keys, (command, *args))
    return keys[0], pack(how, script, len(keys), *keys, command, *args)
