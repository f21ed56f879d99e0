-- The strategies by which limits are counted; ledger.lua charges requests by them.
-- A limit is [strategy, name, amount, period in ms, cost, 1 if the cost is an estimate of tokens]. ARGV[2] and its name
-- make its key, in the slot of KEYS: a request that ends names its limits in what is stored of it, so that the caller
-- cannot pass their keys.

local STRATEGY, KEY, AMOUNT, PERIOD, COST, ESTIMATED = 1, 2, 3, 4, 5, 6
local MAX_EXPIRED = 1000 -- entries of a moving window that one call examines
local strategies = {}

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- -> the finite number in a text; otherwise 0
local function num(text)
  local value = tonumber(text or 0)
  return value and value == value and math.abs(value) < 1e300 and value or 0
end

local function key_of(limit) return ARGV[2] .. limit[KEY] end

local function begin(at, period) return at - at % period end

-- Each strategy has
--   look  -> room left, ms until all of it is free again, ms until the cost fits, and values for `take`
--   take: charge the cost -> ms until all is free again
--   mend: change by `delta` what was charged at the time `at`

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

-- A surplus of a past window is gone with that window; a deficit is charged to the current one.
function fixed.mend(limit, at, delta)
  local from, used = fixed_used(limit)
  local current = begin(now, limit[PERIOD])
  if from == begin(at, limit[PERIOD]) then
    fixed_write(limit, from, used + delta, from)
  elseif delta > 0 then
    fixed_write(limit, current, (from == current and used or 0) + delta, from)
  end
end

-- daily budgets: a request counts on the day on which it was admitted, whenever it ends
local day = { look = fixed.look, take = fixed.take }

function day.mend(limit, at, delta)
  local from, used = fixed_used(limit)
  if from == begin(at, limit[PERIOD]) then fixed_write(limit, from, used + delta, from) end
end

-- sliding window counters: the previous window weighs by how much of it the sliding one still covers

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

-- moving windows: each charge by its time in a sorted set, its cost in a hash, together with the total

local moving = {}

local function costs_of(limit) return key_of(limit) .. ':costs' end

local function moving_total(limit)
  local key, costs = key_of(limit), costs_of(limit)
  local total = num(redis.call('HGET', costs, 'total') or 0)
  local old = redis.call('ZRANGEBYSCORE', key, '-inf', now - limit[PERIOD], 'LIMIT', 0, MAX_EXPIRED)
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
    local oldest = redis.call('ZRANGE', key, 0, MAX_EXPIRED, 'WITHSCORES')
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

-- token buckets: at most `amount` at once, refilled evenly over the period

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

-- concurrency: a request holds a slot from its admission to its end

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
