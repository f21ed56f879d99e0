"""Lua text for one command."""

from __future__ import annotations

from shared.redis.lua_text import for_command

SCRIPT = """\
-- A comment that names unused.
local log, limit = KEYS[1], 10
local prefix = 'hr:' -- ends a key
local spare = {
  key = 1,
}
local commands = {}
local time = redis.call('TIME')

local function unused() return spare end

local function key_of(name)
  -- a comment that names unused
  return KEYS[1]..prefix .. name
end

local function full(size)
  return size.spare > limit or size == 'unused'
end

function commands.add()
  if full(ARGV[2]) then return 0 end
  redis.call('DEL', key_of(ARGV[2]))
end

function commands.list() return unused() end

return commands[ARGV[1]]()
"""


def test_a_command_has_what_it_needs_and_nothing_else() -> None:
    expected = """\
local log, limit = KEYS[1], 10
local prefix = 'hr:' -- ends a key
local commands = {}
local time = redis.call('TIME')
local function key_of(name)
  -- a comment that names unused
  return KEYS[1]..prefix .. name
end
local function full(size)
  return size.spare > limit or size == 'unused'
end
function commands.add()
  if full(ARGV[2]) then return 0 end
  redis.call('DEL', key_of(ARGV[2]))
end
return commands[ARGV[1]]()"""
    assert for_command(SCRIPT, "add") == expected


def test_locals_are_kept_in_their_order_with_what_they_refer_to() -> None:
    made = for_command(SCRIPT, "list").splitlines()
    assert made[:5] == [
        "local spare = {",
        "  key = 1,",
        "}",
        "local commands = {}",
        "local time = redis.call('TIME')",
    ]
    assert made[5:] == [
        "local function unused() return spare end",
        "function commands.list() return unused() end",
        "return commands[ARGV[1]]()",
    ]
