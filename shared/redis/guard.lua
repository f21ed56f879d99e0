-- Stands before each script of this project. Keys named hr: are Headrace's: one of another type was written by another
-- program, would make each command of the script fail, and is removed. What scripts find and cannot use they set aside
-- in a bounded stream of the key's slot, for an operator to look at, and name it in `foreign`.

local server = redis
local foreign = {}
local FOREIGN_MOST, FOREIGN_BYTES, FOREIGN_TTL = 100, 4096, 604800000
local MARK = 'hr:foreign' -- begins the reply of a call that set something aside

-- Keep what was found at `key`, in short, and tell the caller of `place` and the reason.
local function set_aside(key, place, reason, content)
  foreign[#foreign + 1] = { place, reason }
  local slot = string.match(key, '{.-}')
  if not slot then return end
  local kept = 'hr:' .. slot .. ':foreign'
  local function keep()
    return server.pcall('XADD', kept, 'MAXLEN', FOREIGN_MOST, '*', 'place', place, 'reason', reason, 'content',
      string.sub(content or '', 1, FOREIGN_BYTES))
  end
  local reply = keep()
  if type(reply) == 'table' and reply.err then -- its own key is foreign
    server.call('DEL', kept)
    keep()
  end
  server.call('PEXPIRE', kept, FOREIGN_TTL)
end

-- The reply to a command that failed: made again, once a key of another type is gone.
local function mended(reply, command, ...)
  if not string.find(reply.err, 'WRONGTYPE', 1, true) then return reply end
  local first, second = ...
  local key = (command == 'XGROUP' or command == 'XINFO') and second or first
  if command == 'XREADGROUP' then key = select(select('#', ...) - 1, ...) end
  server.call('DEL', key)
  set_aside(key, key, 'wrong type of key')
  return server.pcall(command, ...)
end

local redis = {}

function redis.pcall(...)
  local reply = server.pcall(...)
  if type(reply) == 'table' and reply.err then return mended(reply, ...) end
  return reply
end

function redis.call(...)
  local reply = server.pcall(...)
  if type(reply) == 'table' and reply.err then
    reply = mended(reply, ...)
    if type(reply) == 'table' and reply.err then error(reply) end
  end
  return reply
end
