-- The bounds of the queue, and the reservations of requests on their way through Kafka.

-- -> {bound, seconds until there may be room, or ''} if one more request of `cost` tokens exceeds a bound (1: the
-- model's, 2: the tenant's), which ARGV has from `first`: requests, tokens. A request larger than a bound of tokens is
-- admitted if nothing waits.
local function excess(bound, whose, cost, first)
  local n, t, depth, tokens = number('n' .. whose), number('t' .. whose), tonumber(ARGV[first]), tonumber(ARGV[first + 1])
  if n < depth and (n == 0 or t + cost <= tokens) then return nil end
  local _, speed = rate(1)
  local surplus = math.max(t / n * math.max(1, depth / 10), t + cost - tokens)
  return { bound, speed and speed > 0 and string.format('%.3f', surplus / speed) or '' }
end

-- -> {the bound that one more request of `cost` tokens would exceed, seconds or ''}, or {the gate that drains (3, 4), ''};
-- nil if there is room
local function refusal(tenant, cost, first)
  return drain_refusal(tenant) or excess(1, '', cost, first) or excess(2, ':' .. tenant, cost, first + 2)
end

-- -> the place in a class of the request with the rank `rank`, from 0, in its lane, and how many tenants take turns. Of
-- each other tenant, as many requests go before it as of its own tenant, as far as there are any.
local function place_in(class, tenant, rank)
  local lane = redis.call('ZCARD', lane_of(class, tenant))
  local others = number('n#' .. class) - lane
  local tenants = redis.call('ZCARD', lanes[class]) + (lane == 0 and 1 or 0)
  return rank + 1 + math.min(others, (rank + 1) * (tenants - 1)), tenants
end

-- -> how many requests are before one with the order `order` in its lane
local function ahead_of(class, tenant, order)
  return redis.call('ZCOUNT', lane_of(class, tenant), '-inf', '(' .. string.format('%.17g', order))
end

-- -> seconds until a request that enters its lane with the order `order` is pulled, at the recent rate; nil if unknown
local function expected_wait(class, tenant, order)
  local place, free = place_in(class, tenant, ahead_of(class, tenant, order)), 0
  for _, seats in ipairs(redis.call('HVALS', pullers)) do free = free + finite(seats) end
  for each = 1, CLASSES do free = free - redis.call('XLEN', streams[each]) end
  if number('n') - number('n#' .. class) - count_paused(class) + place <= free then return 0 end
  if seconds() - number('at') > WINDOW_S then return nil end
  local speed = rate(class)
  if speed and speed > 0 then return place / speed end
end

-- -> {5, by how many seconds} if a request that must start by `by`, in ms, is expected to start later; nil if not, if
-- `by` is '', or if it is paused
local function too_late(class, tenant, order, by)
  if by == '' then return nil end
  read_gates()
  if paused.all or paused.tenants[tenant] then return nil end
  local wait = expected_wait(class, tenant, order)
  local late = wait and seconds() + wait - tonumber(by) / 1000
  if late and late > 0 then return { 5, string.format('%.6f', late) } end
end

-- -> confirmed ('1' or '0'), cost, class and tenant of a reservation; nil if there is no such reservation
local function reservation(id)
  local value = redis.call('HGET', reserved, id)
  if value then return string.match(value, '^(%d):(%d+):(%d):(.*)$') end
end

-- Give up a reservation. -> the time in ms at which it was made, or nil
local function unreserve(id)
  local _, cost, _, tenant = reservation(id)
  local born = redis.call('ZSCORE', reserved_at, id)
  if not born and not cost then return nil end
  redis.call('HDEL', reserved, id)
  redis.call('ZREM', reserved_at, id)
  if not cost then return nil end
  charge(tenant, -1, tonumber(cost))
  return born
end

-- group, lanes, class, tenant, request id, cost, deadline in ms or '', then order, latest start and the bounds as for
-- publish -> 0, or {what refuses it, seconds or ''}
function commands.reserve()
  local tenant, id, cost = ARGV[5], ARGV[6], tonumber(ARGV[7])
  if redis.call('HEXISTS', waiting, id) == 1 or redis.call('HEXISTS', reserved, id) == 1 then return 0 end
  local refused = refusal(tenant, cost, 11)
    or too_late(tonumber(ARGV[4]), tenant, tonumber(ARGV[9]) or seconds() * TICKS_PER_S, ARGV[10])
  if refused then return refused end
  redis.call('HSET', reserved, id, table.concat({ 0, cost, ARGV[4], tenant }, ':'))
  redis.call('ZADD', reserved_at, string.format('%d', seconds() * 1000), id)
  charge(tenant, 1, cost)
  if ARGV[8] ~= '' then redis.call('ZADD', overdue, ARGV[8], id) end
  return 0
end

-- group, lanes, request id, 1 if it was written to its topic: its reservation holds. Otherwise it is given back, unless
-- it was confirmed before.
function commands.confirm()
  local confirmed, cost, class, tenant = reservation(ARGV[4])
  if not confirmed then return end
  if ARGV[5] == '1' then
    redis.call('HSET', reserved, ARGV[4], table.concat({ 1, cost, class, tenant }, ':'))
  elseif confirmed == '0' then
    unreserve(ARGV[4])
    redis.call('ZREM', overdue, ARGV[4])
  end
end

-- group, lanes, age in ms: give back the reservations of that age that were never confirmed
-- -> the ids of the confirmed ones of that age
function commands.lapsed()
  local old = {}
  local before = string.format('%d', seconds() * 1000 - ARGV[4])
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', reserved_at, '-inf', before)) do
    if reservation(id) == '1' and is_id(id) then old[#old + 1] = id else unreserve(id) end
  end
  return old
end
