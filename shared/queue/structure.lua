-- The queue's script, joined from these files in this order:
--   structure     the keys, the counters, the drain rate
--   gates         paused and draining models and tenants
--   history       what happened while requests waited
--   entries       a class's stream: what workers hold, and what other programs wrote
--   reservations  bounds, and places of requests on their way through Kafka
--   routes        the worker that a request is aimed at, or that holds it
--   lanes         waiting requests under start-time fair queueing
--   pull          handing them to workers by load
--   leases        claim, renew, release and acknowledge held requests
--   upkeep        deadlines, and places that another program deleted
--   demand        how many requests wait and are held
--   administration  what operators see and change
--   run           runs the command
-- ARGV[1] names a command, ARGV[2] the consumer group, ARGV[3] begins the lanes' keys: which tenants wait is known here
-- only, so the keys of their lanes, in the slot of KEYS, are made here.
--
-- A waiting request is in the lane of its class and tenant. Lanes are served by start-time fair queueing (Goyal, Vin,
-- Cheng 1996) on two levels, both in tokens: classes share by weight, the tenants of a class equally. A held request is
-- an entry of its class's stream, pending for its worker. A class is a number from 1, the most urgent.
--
-- A reserved request was promised a place and is on its way through Kafka: it counts, but cannot be pulled yet.
--
-- Another program may have written into any of these keys, or deleted some. Foreign data is set aside. `lost` reports
-- requests whose place was deleted, by comparing what was accepted with what waits or is held.
--
-- The order in a lane is earliest deadline first: a request's score is its arrival, or with a target for its first
-- token, the time at which that target less the usual one would have been its arrival. A request without a target so
-- counts as one with the usual target. The oldest request of a lane is found in its arrivals.
--
-- counters: ordinal        the last arrival, in ticks: the time, or one more than the last if that is later
--           n, t           waiting requests and tokens; n#<class>; n:<tenant>, t:<tenant> while there are any
--           clock:<class>  virtual time of the class's lanes; clock: of the classes; v:<class> a class's own
--           spared, left   since when workers have left waiting requests, and those of lost workers, to less loaded
--                          ones, and none was taken
--           routed         waiting requests with a route; routed:<worker> while there are any
--           taken:<class>, stepped, steps, pauses, resumed   see history.lua
--           r:<class>, rt, at, since   decayed requests by class, and tokens, that were pulled; when last; since when

local CLASSES = 3
local WINDOW_S = 30 -- over which the drain rate is averaged
local FORGET_RATE_S = 5 * WINDOW_S -- without a pull, after which it is unknown
local counters, waiting, overdue = KEYS[1], KEYS[2], KEYS[3]
local lanes, resting, streams = {}, {}, {}
for class = 1, CLASSES do
  lanes[class], resting[class], streams[class] = KEYS[3 + class], KEYS[6 + class], KEYS[9 + class]
end
local reserved, reserved_at = KEYS[13], KEYS[14] -- hash id -> confirmed:cost:class:tenant; ids by time in ms
-- hash id -> w:class:cost:tenant while it waits, h:class:entry while it is held, l once its place is lost; and a mark
-- that the hash was not deleted (upkeep.lua)
local accepted = KEYS[15]
local pullers = KEYS[16] -- hash worker -> its seats
local routes, in_flight, seen = KEYS[17], KEYS[18], KEYS[19] -- see routes.lua
local gates = KEYS[20] -- see gates.lua
local recent = KEYS[21] -- stream of the ids of requests, as they were published
local TICKS_PER_S = 1e5 -- of the order in a lane
local MAX_DRAINED = 256 -- undelivered entries of a stream that one call handles
local MAX_EXPIRED = 256 -- entries of a stream with an expired lease that one call looks at
local MAX_ID_CHARS = 256
local MAX_RECENT = 10000 -- requests that `recent` has
local SERVED_MS = 60000 -- period for which served tokens are counted together
local commands = {}

local function is_id(text) return #text <= MAX_ID_CHARS and not string.find(text, '[^%w_.:-]') end

local function lane_of(class, tenant) return ARGV[3] .. class .. ':' .. tenant end

-- -> sorted set of the ids in a lane by time of arrival in ms
local function arrivals_of(class, tenant) return ARGV[3] .. 'arrivals:' .. class .. ':' .. tenant end

-- The counters of this call. They are read together where possible, and written together at the end, since a Redis
-- command costs several times what is computed here. A counter at 0 is deleted.
local known, changed = {}, {}

-- -> the finite number in a text; otherwise 0
local function finite(text)
  local value = tonumber(text or 0)
  return value and value == value and math.abs(value) < 1e15 and value or 0
end

local function read(fields)
  local found = redis.call('HMGET', counters, unpack(fields))
  for i, field in ipairs(fields) do known[field] = finite(found[i]) end
end

local function number(field)
  if not known[field] then read({ field }) end
  return known[field]
end

local function set(field, value) known[field], changed[field] = value, true end
local function add(field, amount) set(field, math.max(0, number(field) + amount)) end

local function read_tenant(tenant)
  if not known['n:' .. tenant] then read({ 'n:' .. tenant, 't:' .. tenant }) end
end

local function read_all()
  local fields = { 'n', 't', 'ordinal', 'clock', 'rt', 'at', 'since', 'spared', 'routed', 'stepped', 'resumed' }
  for class = 1, CLASSES do
    for _, of in ipairs({ 'n#', 'v:', 'clock:', 'r:', 'taken:' }) do fields[#fields + 1] = of .. class end
  end
  read(fields)
end

local function write_back()
  local kept, gone = {}, {}
  for field in pairs(changed) do
    if known[field] == 0 then
      gone[#gone + 1] = field
    else
      kept[#kept + 1] = field
      kept[#kept + 1] = known[field]
    end
  end
  if kept[1] then redis.call('HSET', counters, unpack(kept)) end
  if gone[1] then redis.call('HDEL', counters, unpack(gone)) end
end

local function seconds()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1e6
end

-- Add `sign` times a request of `cost` tokens to what counts against the bounds.
local function charge(tenant, sign, cost)
  read_tenant(tenant)
  add('n', sign)
  add('t', sign * cost)
  add('n:' .. tenant, sign)
  add('t:' .. tenant, sign * cost)
end

-- The same, for a request that waits in a lane.
local function count(class, tenant, sign, cost)
  charge(tenant, sign, cost)
  add('n#' .. class, sign)
end

-- -> requests of a class, and tokens of all, that were recently pulled per second; nil if none were for so long that
-- the rate says nothing about the present
local function rate(class)
  local at, now = number('at'), seconds()
  if now - at > FORGET_RATE_S then return nil end
  local seen = WINDOW_S * (1 - math.exp(-math.max(now - number('since'), 1) / WINDOW_S))
  local kept = math.exp(-(now - at) / WINDOW_S) / seen
  return number('r:' .. class) * kept, number('rt') * kept
end

-- -> sorted set of `class:tenant` by the tokens that were served in a period: 0 is the present one, -1 the one before
local function served_key(period)
  return ARGV[3] .. 'served:' .. string.format('%d', math.floor(seconds() * 1000 / SERVED_MS) + period)
end

local function drained(class, cost)
  local now, at = seconds(), number('at')
  if now - at > FORGET_RATE_S then set('since', now) end
  local kept = math.exp(-(now - at) / WINDOW_S)
  for other = 1, CLASSES do set('r:' .. other, number('r:' .. other) * kept + (other == class and 1 or 0)) end
  set('rt', number('rt') * kept + cost)
  set('at', now)
end
