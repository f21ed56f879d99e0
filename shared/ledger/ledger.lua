-- Charges. ARGV[1] names a command, ARGV[2] is the prefix of the limits' keys (strategies.lua).
-- KEYS: open: id -> [time, entry, limits] of requests that have not ended; due: ids by the time in ms at which they are
-- due, which for a claimed one is the end of its lease; ended: id -> [entry, end] of ends that are not recorded yet.

local open, due, ended = KEYS[1], KEYS[2], KEYS[3]
local FIRST_LOOK_MS, LAST_LOOK_MS = 5000, 60000 -- between looks at an open request, in proportion to its age
local commands = {}

local function report(standing, room, reset, wait)
  standing[#standing + 1] = math.floor(room)
  standing[#standing + 1] = math.ceil(reset)
  standing[#standing + 1] = math.ceil(wait)
end

-- Add room, reset and wait of each limit to `standing`. -> what `take` needs; nil if a limit has no room for its cost
local function look_at(limits, standing)
  local states = {}
  for i, limit in ipairs(limits) do
    local room, reset, wait, first, second, third = strategies[limit[STRATEGY]].look(limit)
    if wait > 0 then states = nil end
    if states then states[i] = { room, first, second, third } end
    report(standing, room, reset, wait)
  end
  return states
end

-- Charge the limits, and add the same numbers as they are then.
local function take(id, limits, states, standing)
  for i, limit in ipairs(limits) do
    local room, first, second, third = unpack(states[i], 1, 4)
    report(standing, room - limit[COST], strategies[limit[STRATEGY]].take(limit, id, first, second, third), 0)
  end
end

-- limits -> room, reset, wait of each
function commands.look()
  local standing = {}
  look_at(cjson.decode(ARGV[3]), standing)
  return standing
end

local function decoded(text)
  local fine, parts = pcall(cjson.decode, text)
  return fine and type(parts) == 'table' and parts or {}
end

-- Remove an entry that another program wrote.
local function refuse(id)
  set_aside(open, open .. ':' .. id, 'not a charge', redis.call('HGET', open, id) or redis.call('HGET', ended, id) or '')
  redis.call('HDEL', open, id)
  redis.call('HDEL', ended, id)
  redis.call('ZREM', due, id)
end

-- -> the parts of a stored entry, if they have these types; a foreign one is removed
local function stored(hash, id, ...)
  local text = redis.call('HGET', hash, id)
  if not text then return nil end
  local parts = decoded(text)
  for i, wanted in ipairs({ ... }) do
    if type(parts[i]) ~= wanted then
      refuse(id)
      return nil
    end
  end
  return parts
end

local function limits_of(text)
  local limits = {}
  for _, limit in ipairs(decoded(text)) do
    local known = type(limit) == 'table' and strategies[limit[STRATEGY]] and type(limit[KEY]) == 'string'
    if known and type(limit[AMOUNT]) == 'number' and type(limit[PERIOD]) == 'number' and type(limit[COST]) == 'number' then
      limits[#limits + 1] = limit
    end
  end
  return limits
end

-- Correct what a request was charged at the time `at` to the tokens it took; '' if it never began.
local function mend(id, limits, at, tokens)
  for _, limit in ipairs(limits) do
    local strategy = strategies[limit[STRATEGY]]
    if strategy.free then
      strategy.free(limit, id)
    elseif tokens == '' then
      strategy.mend(limit, at, -limit[COST], id)
    elseif limit[ESTIMATED] == 1 then
      strategy.mend(limit, at, tokens - limit[COST], id)
    end
  end
end

-- most ends that may wait to be recorded, then id, entry, limits of each request
-- -> 'behind', 'known', 'charged' or 'refused': all are charged, or none is. 'charged' is followed by the number of the
-- first that was charged, from 0, and room, reset and wait of each of its limits; 'refused' by the number and the same
-- of the request that has no room, and then the same of the first request.
function commands.charge()
  if redis.call('HLEN', ended) >= num(ARGV[3]) then return { 'behind' } end
  local charged, standing = {}, { 'charged', 0 }
  for i = 4, #ARGV, 3 do
    local id, limits = ARGV[i], cjson.decode(ARGV[i + 2])
    if redis.call('HEXISTS', open, id) == 0 then
      local refusal = { 'refused', (i - 4) / 3 }
      local states = look_at(limits, refusal)
      if not states then
        for _, earlier in ipairs(charged) do
          mend(earlier, cjson.decode(ARGV[charged[earlier] + 2]), now, '')
          redis.call('HDEL', open, earlier)
          redis.call('ZREM', due, earlier)
        end
        look_at(cjson.decode(ARGV[6]), refusal)
        return refusal
      end
      take(id, limits, states, #charged == 0 and standing or {})
      if #charged == 0 then standing[2] = (i - 4) / 3 end
      redis.call('HSET', open, id, cjson.encode({ now, ARGV[i + 1], ARGV[i + 2] }))
      redis.call('ZADD', due, now + FIRST_LOOK_MS, id)
      charged[#charged + 1], charged[id] = id, i
    end
  end
  if #charged == 0 then return { 'known' } end
  if #charged > 1 then -- the later ones changed it
    standing = { 'charged', standing[2] }
    look_at(cjson.decode(ARGV[charged[charged[1]] + 2]), standing)
  end
  return standing
end

-- id, the tokens that it took or '' if it never began, end to be recorded or '', ms until that is due
-- -> its entry to the first caller; nil to later ones
function commands.settle()
  local id = ARGV[3]
  local found = stored(open, id, 'number', 'string', 'string')
  if not found then return nil end
  local at, entry, limits = unpack(found)
  mend(id, limits_of(limits), at, ARGV[4])
  redis.call('HDEL', open, id)
  if ARGV[5] == '' then
    redis.call('ZREM', due, id)
  else
    redis.call('HSET', ended, id, cjson.encode({ entry, ARGV[5] }))
    redis.call('ZADD', due, now + ARGV[6], id)
  end
  return entry
end

-- -> the time in ms at which an open request was charged, and what is stored of it, which the caller decodes: this is
-- done for each waiting request again and again. A foreign one is removed.
local function charged(id)
  local text = redis.call('HGET', open, id)
  local at = text and tonumber(string.match(text, '^%[(%d+),"') or '')
  if text and not at then refuse(id) end
  return at, text
end

-- most, ms of the lease -> for each that is due, {id, age in ms, the stored text} of an open one, else {id, 0, entry, end}
function commands.claim()
  local found = {}
  for _, id in ipairs(expired_leases(due, now, ARGV[3], math.max(LAST_LOOK_MS, ARGV[4]))) do
    local at, held = charged(id)
    local left = not at and stored(ended, id, 'string', 'string')
    if at then
      hold_until(due, id, now + math.min(LAST_LOOK_MS, math.max(FIRST_LOOK_MS, math.floor((now - at) / 8))))
      found[#found + 1] = { id, now - at, held }
    elseif left then
      hold_until(due, id, now + ARGV[4])
      found[#found + 1] = { id, 0, unpack(left) }
    else
      remove_lease(due, id)
    end
  end
  return found
end

-- id: set aside what another program wrote
function commands.refuse() refuse(ARGV[3]) end

-- ids … of ends that are recorded
function commands.written()
  redis.call('HDEL', ended, unpack(ARGV, 3))
  redis.call('ZREM', due, unpack(ARGV, 3))
end

return commands[ARGV[1]]()
