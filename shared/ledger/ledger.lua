-- What requests are charged. ARGV[1] names a command, ARGV[2] is the prefix of the limits' own keys, in the same slot.
-- KEYS: open: id -> [time, entry, limits] of what has not ended; due: ids by the time in ms at which to look at them;
-- ended: id -> [entry, end] of what has ended and is to be written down.
-- A limit is [strategy, key, amount, period in ms, cost, 1 where the cost is an estimate of tokens].

local open, due, ended = KEYS[1], KEYS[2], KEYS[3]
local STRATEGY, KEY, AMOUNT, PERIOD, COST, ESTIMATED = 1, 2, 3, 4, 5, 6
local EXPIRE_MOST = 1000 -- entries of a moving window that one call looks at
local FIRST_LOOK, LAST_LOOK = 5000, 60000 -- ms between looks at what goes on, in proportion to its age
local commands, strategies = {}, {}

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- A finite number; 0 for what is none.
local function num(text)
  local value = tonumber(text or 0)
  return value and value == value and math.abs(value) < 1e300 and value or 0
end

local function key_of(limit) return ARGV[2] .. limit[KEY] end

local function begin(at, period) return at - at % period end

-- Each strategy: look -> room left, ms until all is free again, ms until the cost fits, and what `take` needs to know;
-- take: charge the cost -> ms until all is free again; mend: change by `delta` what was charged at the time `at`.

-- fixed windows, by the epoch: a day's is UTC's

local function fixed_used(limit)
  local found = redis.call('HMGET', key_of(limit), 'begin', 'used')
  return num(found[1] or 0), num(found[2] or 0)
end

local function fixed_write(limit, from, used, known)
  redis.call('HSET', key_of(limit), 'begin', from, 'used', math.max(0, used))
  if from ~= known then redis.call('PEXPIRE', key_of(limit), math.max(1, from + limit[PERIOD] - now)) end
end

local fixed = {}

function fixed.look(limit)
  local from, used = fixed_used(limit)
  local current = begin(now, limit[PERIOD])
  if from ~= current then used = 0 end
  local left = current + limit[PERIOD] - now
  return limit[AMOUNT] - used, used > 0 and left or 0, used + limit[COST] > limit[AMOUNT] and left or 0, used, from
end

function fixed.take(limit, id, used, known)
  local current = begin(now, limit[PERIOD])
  fixed_write(limit, current, used + limit[COST], known)
  return current + limit[PERIOD] - now
end

-- What a past window was charged too much is gone with it; what it was charged too little is charged to this one.
function fixed.mend(limit, at, delta)
  local from, used = fixed_used(limit)
  local current = begin(now, limit[PERIOD])
  if from == begin(at, limit[PERIOD]) then
    fixed_write(limit, from, used + delta, from)
  elseif delta > 0 then
    fixed_write(limit, current, (from == current and used or 0) + delta, from)
  end
end

-- a budget: a request belongs to the day on which it was admitted, whenever it ends
local day = { look = fixed.look, take = fixed.take }

function day.mend(limit, at, delta)
  local from, used = fixed_used(limit)
  if from == begin(at, limit[PERIOD]) then fixed_write(limit, from, used + delta, from) end
end

-- sliding windows, counted: the last window weighs by how much of it the sliding one still covers

local sliding = {}

local function sliding_used(limit)
  local found = redis.call('HMGET', key_of(limit), 'begin', 'used', 'before')
  local from, current = num(found[1] or 0), begin(now, limit[PERIOD])
  if from == current then return current, num(found[2]), num(found[3]), from end
  return current, 0, from == current - limit[PERIOD] and num(found[2]) or 0, from
end

local function sliding_write(limit, from, used, before, known)
  redis.call('HSET', key_of(limit), 'begin', from, 'used', math.max(0, used), 'before', math.max(0, before))
  if from ~= known then redis.call('PEXPIRE', key_of(limit), from + 2 * limit[PERIOD] - now) end
end

function sliding.look(limit)
  local amount, period, cost = limit[AMOUNT], limit[PERIOD], limit[COST]
  local from, used, before, known = sliding_used(limit)
  local passed, wait = now - from, 0
  local weight = before * (period - passed) / period + used
  if weight + cost > amount then
    if used + cost <= amount then
      wait = period * (1 - (amount - used - cost) / before) - passed
    else
      wait = period - passed + period * math.max(0, 1 - (amount - cost) / used)
    end
    wait = math.max(1, wait)
  end
  local reset = used > 0 and 2 * period - passed or before > 0 and period - passed or 0
  return amount - weight, reset, wait, used, before, known
end

function sliding.take(limit, id, used, before, known)
  local from = begin(now, limit[PERIOD])
  sliding_write(limit, from, used + limit[COST], before, known)
  return 2 * limit[PERIOD] - (now - from)
end

function sliding.mend(limit, at, delta)
  local from, used, before, known = sliding_used(limit)
  local charged = begin(at, limit[PERIOD])
  if charged == from - limit[PERIOD] then
    before = before + delta
  elseif charged == from or delta > 0 then
    used = used + delta
  end
  sliding_write(limit, from, used, before, known)
end

-- moving windows: every charge by its time in a sorted set, its cost in a hash with their total

local moving = {}

local function costs_of(limit) return key_of(limit) .. ':costs' end

local function moving_total(limit)
  local key, costs = key_of(limit), costs_of(limit)
  local total = num(redis.call('HGET', costs, 'total') or 0)
  local old = redis.call('ZRANGEBYSCORE', key, '-inf', now - limit[PERIOD], 'LIMIT', 0, EXPIRE_MOST)
  for _, id in ipairs(old) do
    total = total - num(redis.call('HGET', costs, id) or 0)
    redis.call('HDEL', costs, id)
    redis.call('ZREM', key, id)
  end
  if #old > 0 then redis.call('HSET', costs, 'total', total) end
  return total
end

local function moving_write(limit, id, cost, total, at)
  if at then redis.call('ZADD', key_of(limit), at, id) end
  redis.call('HSET', costs_of(limit), id, cost, 'total', total)
  if at then
    redis.call('PEXPIRE', key_of(limit), limit[PERIOD])
    redis.call('PEXPIRE', costs_of(limit), limit[PERIOD])
  end
end

function moving.look(limit)
  local key, total = key_of(limit), moving_total(limit)
  local newest, wait = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES'), 0
  local short = total + limit[COST] - limit[AMOUNT]
  if short > 0 then
    local oldest = redis.call('ZRANGE', key, 0, EXPIRE_MOST, 'WITHSCORES')
    for i = 1, #oldest, 2 do
      if short <= 0 then break end
      short = short - num(redis.call('HGET', costs_of(limit), oldest[i]) or 0)
      wait = math.max(1, num(oldest[i + 1]) + limit[PERIOD] - now)
    end
  end
  return limit[AMOUNT] - total, newest[2] and num(newest[2]) + limit[PERIOD] - now or 0, wait, total
end

function moving.take(limit, id, total)
  moving_write(limit, id, limit[COST], total + limit[COST], now)
  return limit[PERIOD]
end

function moving.mend(limit, at, delta, id)
  local total = moving_total(limit)
  local cost = num(redis.call('HGET', costs_of(limit), id) or 0)
  if cost > 0 then
    moving_write(limit, id, math.max(0, cost + delta), total + math.max(-cost, delta))
  elseif delta > 0 then
    moving_write(limit, id, delta, total + delta, now)
  end
end

-- token buckets: as many as `amount` at once, refilled evenly over the period

local bucket = {}

local function bucket_level(limit)
  local found = redis.call('HMGET', key_of(limit), 'level', 'at')
  if not found[1] then return limit[AMOUNT] end
  local refill = (now - num(found[2])) * limit[AMOUNT] / limit[PERIOD]
  return math.min(limit[AMOUNT], num(found[1]) + refill)
end

local function until_level(limit, level, wanted) return (wanted - level) * limit[PERIOD] / limit[AMOUNT] end

local function bucket_write(limit, level)
  redis.call('HSET', key_of(limit), 'level', math.min(limit[AMOUNT], level), 'at', now)
  redis.call('PEXPIRE', key_of(limit), math.max(1, math.ceil(until_level(limit, level, limit[AMOUNT]))))
end

function bucket.look(limit)
  local level = bucket_level(limit)
  local wait = math.max(0, until_level(limit, level, limit[COST]))
  return level, until_level(limit, level, limit[AMOUNT]), wait, level
end

function bucket.take(limit, id, level)
  bucket_write(limit, level - limit[COST])
  return until_level(limit, level - limit[COST], limit[AMOUNT])
end

function bucket.mend(limit, at, delta) bucket_write(limit, bucket_level(limit) - delta) end

-- slots: a request holds one from its admission to its end

local slots = {}

function slots.look(limit)
  local room = limit[AMOUNT] - redis.call('ZCARD', key_of(limit))
  return room, 0, room < limit[COST] and 1000 or 0
end

function slots.take(limit, id)
  redis.call('ZADD', key_of(limit), now, id)
  return 0
end

function slots.free(limit, id) redis.call('ZREM', key_of(limit), id) end

strategies['fixed-window'] = fixed
strategies['sliding-window-counter'] = sliding
strategies['moving-window'] = moving
strategies['token-bucket'] = bucket
strategies.day = day
strategies.slots = slots

local function tell(standing, room, reset, wait)
  standing[#standing + 1] = math.floor(room)
  standing[#standing + 1] = math.ceil(reset)
  standing[#standing + 1] = math.ceil(wait)
end

-- Adds room, reset, wait of each, in whole numbers. -> what `take` needs; nil where one has no room for its cost
local function look_at(limits, standing)
  local states = {}
  for i, limit in ipairs(limits) do
    local room, reset, wait, first, second, third = strategies[limit[STRATEGY]].look(limit)
    if wait > 0 then states = nil end
    if states then states[i] = { room, first, second, third } end
    tell(standing, room, reset, wait)
  end
  return states
end

-- Adds the same as it is then.
local function take(id, limits, states, standing)
  for i, limit in ipairs(limits) do
    local room, first, second, third = unpack(states[i], 1, 4)
    tell(standing, room - limit[COST], strategies[limit[STRATEGY]].take(limit, id, first, second, third), 0)
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

-- A request of another program: nothing is known of it any more.
local function refuse(id)
  set_aside(open, open .. ':' .. id, 'not a charge', redis.call('HGET', open, id) or redis.call('HGET', ended, id) or '')
  redis.call('HDEL', open, id)
  redis.call('HDEL', ended, id)
  redis.call('ZREM', due, id)
end

-- What is known of a request, where it was written here and its parts have these types; nil otherwise.
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

-- What a request took of its limits, or '' where it never began, in place of what it was charged at the time `at`.
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

-- most ends that may wait to be written, then id, entry, limits of each request
-- -> what became of them: all are charged or none is. 'charged' comes with the number of the first that was, from 0,
-- and room, reset, wait of each of its limits; 'refused' with the number and the same of that which has no room, and
-- then the same of the first.
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
      redis.call('ZADD', due, now + FIRST_LOOK, id)
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

-- id, the tokens that it took or '' for one that never began, end to be written or '', ms until that is due
-- -> its entry, once; nil to all who come later
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

-- most, ms for which nobody else gets them -> {id, age in ms, entry, end or ''} of each that is due
function commands.claim()
  local found = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, ARGV[3])) do
    local held, left = stored(open, id, 'number', 'string', 'string'), stored(ended, id, 'string', 'string')
    if held then
      local at, entry = unpack(held)
      redis.call('ZADD', due, now + math.min(LAST_LOOK, math.max(FIRST_LOOK, (now - at) / 8)), id)
      found[#found + 1] = { id, now - at, entry, '' }
    elseif left then
      redis.call('ZADD', due, now + ARGV[4], id)
      found[#found + 1] = { id, 0, unpack(left) }
    else
      redis.call('ZREM', due, id)
    end
  end
  return found
end

-- id: no charge, but of another program
function commands.refuse() refuse(ARGV[3]) end

-- ids … of ends that are written
function commands.written()
  redis.call('HDEL', ended, unpack(ARGV, 3))
  redis.call('ZREM', due, unpack(ARGV, 3))
end

return commands[ARGV[1]]()
