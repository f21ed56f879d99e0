-- Waiting requests: one lane for each tenant of a class, under start-time fair queueing, and in it the earliest deadline
-- first.

-- -> cost, seats, time of arrival in ms and payload of a waiting request; nil if it does not wait, or is foreign
local function waiter(id)
  local value = redis.call('HGET', waiting, id)
  if not value then return nil end
  local cost, seats, born, at = string.match(value, '^(%d+):(%d+):(%d+):()')
  if not cost then return nil end
  return { cost = tonumber(cost), seats = tonumber(seats), born = tonumber(born), payload = string.sub(value, at) }
end

-- Take a request out of its lane. An empty lane rests with its virtual time, so that its tenant gains nothing by it.
local function leave(class, tenant, id, cost)
  unaim(class, tenant, id)
  redis.call('HDEL', waiting, id)
  redis.call('ZREM', lane_of(class, tenant), id)
  redis.call('ZREM', arrivals_of(class, tenant), id)
  count(class, tenant, -1, cost)
  if redis.call('EXISTS', lane_of(class, tenant)) == 0 then
    local virtual = redis.call('ZSCORE', lanes[class], tenant)
    if virtual then redis.call('ZADD', resting[class], finite(virtual), tenant) end
    redis.call('ZREM', lanes[class], tenant)
  end
  if number('n') == 0 then redis.call('DEL', unpack(resting)) end
end

-- -> what waits beside a request with the rank `rank`, from 0, in its lane, as shared/protocol/marks.py has it, in JSON.
-- A request that is counted itself is given with its cost.
local function backlog(class, tenant, rank, cost)
  local place, tenants = place_in(class, tenant, rank)
  local itself, by_class = cost and 1 or 0, {}
  for other = 1, CLASSES do by_class[other] = number('n#' .. other) - (other == class and itself or 0) end
  read_tenant(tenant)
  return string.format('[%d,[%d,%d,%d],%d,%d,%d,%d]', place, by_class[1], by_class[2], by_class[3],
    math.max(0, number('n:' .. tenant) - itself), tenants, math.max(0, number('t') - (cost or 0)),
    math.max(0, number('t:' .. tenant) - (cost or 0)))
end

-- group, lanes, class, tenant, request id, cost, seats, deadline in ms or '', payload, wake channel, the worker it is
-- aimed at or '', its order in its lane in ticks or '' for its arrival, the time in ms by which it must be expected to
-- start or '', then the model's and the tenant's bounds: requests, tokens
-- -> 0, or {what refuses it, seconds or ''}
function commands.publish()
  local class, tenant, id, cost = tonumber(ARGV[4]), ARGV[5], ARGV[6], tonumber(ARGV[7])
  if redis.call('HEXISTS', waiting, id) == 1 then return 0 end
  read({ 'ordinal', 'n', 't', 'n#1', 'n#2', 'n#3', 'n:' .. tenant, 't:' .. tenant })
  local promised = redis.call('EXISTS', reserved, reserved_at) > 0 and unreserve(id)
  local time = redis.call('TIME')
  local now = time[1] + time[2] / 1e6
  local arrival = math.max(number('ordinal') + 1, math.floor(now * TICKS_PER_S))
  local order = tonumber(ARGV[13]) or arrival
  local refused = not promised and (refusal(tenant, cost, 15) or too_late(class, tenant, order, ARGV[14]))
  if refused then return refused end
  set('ordinal', arrival)
  local waits = number('n#1') + number('n#2') + number('n#3') > 0
  local behind = waits and backlog(class, tenant, ahead_of(class, tenant, order)) or 'null'
  local stay = string.format('{"stay":[%s.%05d,%s],', time[1], time[2] / 10, behind)
  local born = string.format('%d', promised or now * 1000)
  redis.call('HSET', waiting, id, cost .. ':' .. ARGV[8] .. ':' .. born .. ':' .. stay .. string.sub(ARGV[10], 2))
  if number('n#' .. class) == 0 then set('v:' .. class, math.max(number('v:' .. class), number('clock'))) end
  redis.call('ZADD', lane_of(class, tenant), order, id)
  redis.call('ZADD', arrivals_of(class, tenant), born, id)
  if ARGV[12] ~= '' then aim(class, tenant, id, cost, ARGV[12], order) end
  if not redis.call('ZSCORE', lanes[class], tenant) then
    local rested = finite(redis.call('ZSCORE', resting[class], tenant))
    redis.call('ZREM', resting[class], tenant)
    redis.call('ZADD', lanes[class], math.max(rested, number('clock:' .. class)), tenant)
  end
  redis.call('HSET', accepted, id, 'w:' .. class .. ':' .. cost .. ':' .. tenant)
  count(class, tenant, 1, cost)
  if ARGV[9] ~= '' then redis.call('ZADD', overdue, ARGV[9], id) end
  redis.call('XADD', recent, 'MAXLEN', '~', MAX_RECENT, '*', 'i', id)
  redis.call('PUBLISH', ARGV[11], 'published')
  return 0
end

-- group, lanes, class, tenant, request id: remove it if it still waits -> its stay as JSON or '', if it did
function commands.discard()
  local class, item = tonumber(ARGV[4]), waiter(ARGV[6])
  if not item then
    if unreserve(ARGV[6]) then redis.call('ZREM', overdue, ARGV[6]) end
    return
  end
  local rank = redis.call('ZRANK', lane_of(class, ARGV[5]), ARGV[6])
  local stay = rank and stay_so_far(class, ARGV[5], item, (place_in(class, ARGV[5], rank)))
  leave(class, ARGV[5], ARGV[6], item.cost)
  if any_routes() then end_route(ARGV[6]) end
  redis.call('ZREM', overdue, ARGV[6])
  redis.call('HDEL', accepted, ARGV[6])
  return stay or nil
end

-- -> the class whose turn it is among those with waiting requests and room, and its virtual time; or nil
local function next_class(room)
  local chosen, least
  for class = 1, CLASSES do
    if room[class] > 0 and number('n#' .. class) > 0 then
      local start = number('v:' .. class)
      if not least or start < least then chosen, least = class, start end
    end
  end
  return chosen, least
end

-- -> id and waiter of the first request in a lane; nil if the lane is empty. Foreign data is set aside on the way.
local function head_of(class, tenant)
  while true do
    local id = redis.call('ZRANGE', lane_of(class, tenant), 0, 0)[1]
    local item = id and waiter(id)
    if item then return id, item end
    if not id then
      redis.call('ZREM', lanes[class], tenant)
      return nil
    end
    redis.call('ZREM', lane_of(class, tenant), id)
    redis.call('HDEL', waiting, id)
    set_aside(counters, lane_of(class, tenant) .. ':' .. id, 'an id without a request')
  end
end

-- -> the next request of a class: tenant, the tenant's virtual time, id and waiter; nil if the lanes are empty or paused
local function first_of(class)
  while true do
    local first = open_lanes(class, 0, 0)
    if not first[1] then return none_open(class) end
    local id, item = head_of(class, first[1])
    if id then return first[1], finite(first[2]), id, item end
  end
end

-- -> id, waiter and order of the first request of a lane that is aimed at a worker, or nil
local function first_aimed(class, tenant, worker)
  local key = aimed_at(class, worker, tenant)
  while true do
    local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
    if not first[1] then return nil end
    local item = waiter(first[1])
    if item then return first[1], item, finite(first[2]) end
    redis.call('ZREM', key, first[1]) -- taken by an earlier version, which does not know aims
  end
end

-- -> id and waiter of the first request in a lane that the worker of a search may take, or nil
local function open_in(class, tenant, search)
  local id, item = head_of(class, tenant)
  if not id or is_open(search, route(id)) then return id, item end
  local order
  for _, worker in ipairs(searched(search)) do
    local first, waits, own = first_aimed(class, tenant, worker)
    if first and not (order and order < own) and is_open(search, route(first)) then
      order, id, item = own, first, waits
    end
  end
  if order then return id, item end
end

-- -> as `first_of`, of the requests that the worker of a search may take
local function open_of(class, search)
  local wide, own = is_wide(search), number('routed:' .. search.worker) > 0
  local tenant, virtual = next_lane(class, search)
  while tenant and (wide or own) do
    local id, item
    if wide then id, item = open_in(class, tenant, search) else id, item = first_aimed(class, tenant, search.worker) end
    if id then return tenant, virtual, id, item end
    if redis.call('EXISTS', lane_of(class, tenant)) == 1 then
      search.lanes[class] = search.lanes[class] + 1
    else
      search.lists[class] = nil
    end
    tenant, virtual = next_lane(class, search)
  end
  if tenant or search.lanes[class] > 0 then
    search.passed = true
  else
    none_open(class)
  end
end

-- Take the next request of a class, unless it needs more seats than are free. A request that needs more seats than any
-- worker has goes to an idle worker, which refuses it. With a search, take the next that its worker may take. Steps are
-- noted once in `interval` ticks.
-- -> {class, entry, payload, attempt}
local function take(class, start, weight, room, capacity, search, interval)
  local tenant, began, id, item
  if search then tenant, began, id, item = open_of(class, search) else tenant, began, id, item = first_of(class) end
  if not tenant or item.seats > room[class] and room[class] < capacity then
    room[class] = 0
    return nil
  end
  local payload = with_history(class, tenant, item, interval)
  local entry = enter(class, payload, id)
  add('taken:' .. class, 1)
  set('clock', math.max(number('clock'), start))
  set('v:' .. class, start + item.cost / weight)
  set('clock:' .. class, math.max(number('clock:' .. class), began))
  redis.call('ZADD', lanes[class], began + item.cost, tenant)
  leave(class, tenant, id, item.cost)
  redis.call('ZREMRANGEBYSCORE', resting[class], '-inf', began)
  drained(class, item.cost)
  for other = 1, CLASSES do room[other] = room[other] - item.seats end
  if search then note_taken(search, class, id, item.seats) end
  return { class, entry, payload, 1, tenant = tenant, cost = item.cost } -- the reply has the first four
end

-- -> the time of arrival in ms of the oldest waiting request in a lane, or nil
local function oldest_in(class, tenant)
  local arrivals = arrivals_of(class, tenant)
  while true do
    local id, born = unpack(redis.call('ZRANGE', arrivals, 0, 0, 'WITHSCORES'))
    if not id then return nil end
    if redis.call('HEXISTS', waiting, id) == 1 then return finite(born) end
    redis.call('ZREM', arrivals, id) -- taken by an earlier version, which does not know arrivals
  end
end

-- group, lanes, class, tenant, request id -> {place in the class from 1, seconds or ''}; nil once it has left the queue
function commands.outlook()
  local class = tonumber(ARGV[4])
  local rank = redis.call('ZRANK', lane_of(class, ARGV[5]), ARGV[6])
  if not rank then
    if reservation(ARGV[6]) ~= '1' then return nil end
    return { number('n#' .. class) + (redis.call('ZRANK', reserved_at, ARGV[6]) or 0) + 1, '' }
  end
  local place = place_in(class, ARGV[5], rank)
  local model_gate, tenant_gate = gates_of(ARGV[5])
  local speed = model_gate ~= 'paused' and tenant_gate ~= 'paused' and rate(class)
  return { place, speed and speed > 0 and string.format('%.3f', place / speed) or '' }
end

-- group, lanes, class, tenant, request id -> {what waits beside it now, its stay or ''}, as JSON; nil once it has left
-- the queue
function commands.wait()
  local class, item = tonumber(ARGV[4]), waiter(ARGV[6])
  local rank = item and redis.call('ZRANK', lane_of(class, ARGV[5]), ARGV[6])
  if not rank then return nil end
  local place = place_in(class, ARGV[5], rank)
  return { backlog(class, ARGV[5], rank, item.cost), stay_so_far(class, ARGV[5], item, place) }
end
