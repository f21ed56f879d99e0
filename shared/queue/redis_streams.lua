-- The queue's commands. ARGV[1] names one, ARGV[2] the consumer group, ARGV[3] begins the lanes' keys.
--
-- What waits is in lanes, one per class and tenant, and served by start-time fair queueing (Goyal, Vin, Cheng 1996),
-- twice: classes share by weight, the tenants of a class in equal parts, both in tokens. What a worker holds is an
-- entry of its class's stream, pending for that worker. A class is a number from 1, the most urgent.
--
-- What is reserved was promised a place and is on its way through Kafka: it counts, and cannot be pulled yet.
--
-- Another program may have written into any of these keys, or deleted some. What it wrote is set aside; a request whose
-- place it deleted is reported by `lost`, which compares what was accepted with what waits or is held.
--
-- counters: ordinal        requests ever published
--           n, t           requests and tokens that wait; n#<class>; n:<tenant>, t:<tenant> while there are any
--           clock:<class>  virtual time of the class's lanes; clock: that of the classes; v:<class> a class's own
--           spared         since when workers have left requests to less loaded ones, and none was taken
--           r:<class>, rt, at, since   requests by class and tokens pulled, decayed; when last; since when

local CLASSES = 3
local WINDOW = 30 -- seconds over which the drain rate is an average
local counters, waiting, overdue = KEYS[1], KEYS[2], KEYS[3]
local lanes, resting, streams = {}, {}, {}
for class = 1, CLASSES do
  lanes[class], resting[class], streams[class] = KEYS[3 + class], KEYS[6 + class], KEYS[9 + class]
end
local reserved, reserved_at = KEYS[13], KEYS[14] -- hash id -> confirmed:cost:class:tenant; ids by time in ms
-- hash id -> w:class:cost:tenant while it waits, h:class:entry while it is held, l once its place is known to be lost
local accepted = KEYS[15]
local pullers = KEYS[16] -- hash worker -> its seats
local DRAINED = 256 -- foreign entries of a stream that one call sets aside
local MOST_ID = 256 -- characters of a request's id
local commands = {}

local function is_id(text) return #text <= MOST_ID and not string.find(text, '[^%w_.:-]') end

local function lane_of(class, tenant) return ARGV[3] .. class .. ':' .. tenant end

-- The counters as this call finds and leaves them: read together, as far as `read` is told of them ahead, and written
-- together at its end, since a call of Redis costs several times what is computed here. What is 0 is not kept.
local known, changed = {}, {}

-- A finite number; 0 for what is none.
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
  local fields = { 'n', 't', 'ordinal', 'clock', 'rt', 'at', 'since', 'spared' }
  for class = 1, CLASSES do
    for _, of in ipairs({ 'n#', 'v:', 'clock:', 'r:' }) do fields[#fields + 1] = of .. class end
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
      kept[#kept + 1] = string.format('%.17g', known[field])
    end
  end
  if kept[1] then redis.call('HSET', counters, unpack(kept)) end
  if gone[1] then redis.call('HDEL', counters, unpack(gone)) end
end

local function seconds()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1e6
end

-- Change what counts against the bounds, by `sign` times one request of `cost` tokens.
local function charge(tenant, sign, cost)
  read_tenant(tenant)
  for _, whose in ipairs({ '', ':' .. tenant }) do
    add('n' .. whose, sign)
    add('t' .. whose, sign * cost)
  end
end

-- Change what is known to wait in lanes.
local function count(class, tenant, sign, cost)
  charge(tenant, sign, cost)
  add('n#' .. class, sign)
end

-- A reservation as confirmed ('1'), cost, class and tenant; nil where there is none.
local function reservation(id)
  local value = redis.call('HGET', reserved, id)
  if value then return string.match(value, '^(%d):(%d+):(%d):(.*)$') end
end

-- Give a reservation up; the time in ms since when it was held, or nil.
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

-- A waiting request's cost, seats, time of arrival in ms and payload; nil when it does not wait, or not as written here.
local function waiter(id)
  local value = redis.call('HGET', waiting, id)
  if not value then return nil end
  local cost, seats, born, at = string.match(value, '^(%d+):(%d+):(%d+):()')
  if not cost then return nil end
  return { cost = tonumber(cost), seats = tonumber(seats), born = tonumber(born), payload = string.sub(value, at) }
end

-- Strike a request off its lane; a lane that is empty rests with its virtual time, so that it gains nothing by it.
local function leave(class, tenant, id, cost)
  redis.call('HDEL', waiting, id)
  redis.call('ZREM', lane_of(class, tenant), id)
  count(class, tenant, -1, cost)
  if redis.call('EXISTS', lane_of(class, tenant)) == 0 then
    local virtual = redis.call('ZSCORE', lanes[class], tenant)
    if virtual then redis.call('ZADD', resting[class], finite(virtual), tenant) end
    redis.call('ZREM', lanes[class], tenant)
  end
  if number('n') == 0 then redis.call('DEL', unpack(resting)) end
end

-- The consumer group appears with the first call that needs it.
local function grouped(class, call)
  local reply = call()
  if type(reply) == 'table' and reply.err and string.find(reply.err, 'NOGROUP', 1, true) then
    redis.call('XGROUP', 'CREATE', streams[class], ARGV[2], '0', 'MKSTREAM')
    reply = call()
  end
  if type(reply) == 'table' and reply.err then error(reply) end -- the table, not its text, which would get a prefix
  return reply
end

-- What is known of one held entry: its consumer and how often it was delivered, or nil.
local function holder(class, id)
  local found = grouped(class, function()
    return redis.pcall('XPENDING', streams[class], ARGV[2], id, id, 1)
  end)
  if found[1] then return found[1][2], found[1][4] end
end

-- The payload and the request id of an entry; nil for one that another program added.
local function content(entry)
  local fields = entry[2]
  if fields and #fields == 4 and fields[1] == 'r' and fields[3] == 'i' then return fields[2], fields[4] end
end

-- Take an entry out of its stream that cannot be run.
local function drop(class, entry, reason)
  redis.call('XACK', streams[class], ARGV[2], entry[1])
  redis.call('XDEL', streams[class], entry[1])
  set_aside(streams[class], streams[class] .. ':' .. entry[1], reason, table.concat(entry[2] or {}, ' '))
end

-- Add entries to those that are handed out, and set aside the foreign ones. -> how many these were
local function handed(out, class, entries, attempt)
  local dropped = 0
  for _, entry in ipairs(entries) do
    local payload = content(entry)
    if payload then
      out[#out + 1] = { class, entry[1], payload, attempt or select(2, holder(class, entry[1])) or 1 }
    elseif entry[2] then
      drop(class, entry, 'not an entry of this queue')
      dropped = dropped + 1
    end
  end
  return dropped
end

-- Hand out what is in a stream and was given to nobody: only another program, or a call that failed half-way, leaves
-- such entries. -> false where there may be more of them
local function drain(out, class)
  local reply = grouped(class, function()
    return redis.pcall('XREADGROUP', 'GROUP', ARGV[2], ARGV[4], 'COUNT', DRAINED, 'STREAMS', streams[class], '>')
  end)
  local entries = reply and reply[1][2] or {}
  handed(out, class, entries, 1)
  return #entries < DRAINED
end

-- Make a stream anew, with what is held in it: another program used up its ids.
local function rebuild(class)
  local stream, held = streams[class], {}
  for _, fact in ipairs(redis.call('XPENDING', stream, ARGV[2], '-', '+', 1000000)) do
    local entry = redis.call('XRANGE', stream, fact[1], fact[1])[1]
    if entry and content(entry) then held[#held + 1] = { fact, entry[2] } end
  end
  set_aside(stream, stream, 'its ids were used up')
  redis.call('DEL', stream)
  redis.call('XGROUP', 'CREATE', stream, ARGV[2], '0', 'MKSTREAM')
  for _, each in ipairs(held) do
    local fact, fields = each[1], each[2]
    redis.call('XADD', stream, fact[1], unpack(fields))
    redis.call('XCLAIM', stream, ARGV[2], fact[2], 0, fact[1], 'IDLE', fact[3], 'RETRYCOUNT', fact[4], 'FORCE',
      'JUSTID', 'LASTID', fact[1])
  end
end

-- Put a request into its class's stream. -> the entry
local function enter(class, payload, id)
  local entry = redis.pcall('XADD', streams[class], '*', 'r', payload, 'i', id)
  if type(entry) == 'table' then
    if not (string.find(entry.err, 'exhausted', 1, true) or string.find(entry.err, 'smaller', 1, true)) then
      error(entry)
    end
    rebuild(class)
    entry = redis.call('XADD', streams[class], '*', 'r', payload, 'i', id)
  end
  redis.call('HSET', accepted, id, 'h:' .. class .. ':' .. entry)
  return entry
end

-- The ids of all requests that workers hold, as a set.
local function all_held()
  local ids = {}
  for class = 1, CLASSES do
    for _, entry in ipairs(redis.call('XRANGE', streams[class], '-', '+')) do
      local _, id = content(entry)
      if id then ids[id] = true end
    end
  end
  return ids
end

-- Requests and tokens a second that were pulled of late; nil before there were any.
local function rate(class)
  local at = number('at')
  if at == 0 then return nil end
  local now = seconds()
  local seen = WINDOW * (1 - math.exp(-math.max(now - number('since'), 1) / WINDOW))
  local kept = math.exp(-(now - at) / WINDOW) / seen
  return number('r:' .. class) * kept, number('rt') * kept
end

local function drained(class, cost)
  local now, at = seconds(), number('at')
  if now - at > 5 * WINDOW then set('since', now) end
  local kept = math.exp(-(now - at) / WINDOW)
  for other = 1, CLASSES do set('r:' .. other, number('r:' .. other) * kept + (other == class and 1 or 0)) end
  set('rt', number('rt') * kept + cost)
  set('at', now)
end

-- Which bound one more request of `cost` tokens would pass, as {bound, seconds until there may be room}, or nil.
-- A request larger than a bound of tokens is let in where nothing waits before it.
local function refusal(tenant, cost, bounds)
  for i, whose in ipairs({ '', ':' .. tenant }) do
    local n, t = number('n' .. whose), number('t' .. whose)
    local depth, tokens = tonumber(bounds[2 * i - 1]), tonumber(bounds[2 * i])
    if n >= depth or (n > 0 and t + cost > tokens) then
      local _, speed = rate(1)
      local excess = math.max(t / n * math.max(1, depth / 10), t + cost - tokens)
      return { i, speed and speed > 0 and string.format('%.3f', excess / speed) or '' }
    end
  end
end

-- group, lanes, class, tenant, request id, cost, seats, deadline in ms or '', payload, wake channel,
-- then the model's and the tenant's bounds: requests, tokens -> {0}, or {which bound, seconds or ''}
function commands.publish()
  local class, tenant, id, cost = tonumber(ARGV[4]), ARGV[5], ARGV[6], tonumber(ARGV[7])
  if redis.call('HEXISTS', waiting, id) == 1 then return { 0 } end
  read_all()
  read_tenant(tenant)
  local promised = unreserve(id)
  local refused = not promised and refusal(tenant, cost, { unpack(ARGV, 12) })
  if refused then return refused end
  add('ordinal', 1)
  local born = string.format('%d', promised or seconds() * 1000)
  redis.call('HSET', waiting, id, table.concat({ cost, ARGV[8], born, ARGV[10] }, ':'))
  if number('n#' .. class) == 0 then set('v:' .. class, math.max(number('v:' .. class), number('clock'))) end
  redis.call('ZADD', lane_of(class, tenant), number('ordinal'), id)
  if not redis.call('ZSCORE', lanes[class], tenant) then
    local rested = finite(redis.call('ZSCORE', resting[class], tenant))
    redis.call('ZREM', resting[class], tenant)
    redis.call('ZADD', lanes[class], math.max(rested, number('clock:' .. class)), tenant)
  end
  redis.call('HSET', accepted, id, table.concat({ 'w', class, cost, tenant }, ':'))
  count(class, tenant, 1, cost)
  if ARGV[9] ~= '' then redis.call('ZADD', overdue, ARGV[9], id) end
  redis.call('PUBLISH', ARGV[11], 'published')
  return { 0 }
end

-- group, lanes, class, tenant, request id, cost, deadline in ms or '', then the bounds as for publish
-- -> {0}, or {which bound, seconds or ''}
function commands.reserve()
  local tenant, id, cost = ARGV[5], ARGV[6], tonumber(ARGV[7])
  if redis.call('HEXISTS', waiting, id) == 1 or redis.call('HEXISTS', reserved, id) == 1 then return { 0 } end
  local refused = refusal(tenant, cost, { unpack(ARGV, 9) })
  if refused then return refused end
  redis.call('HSET', reserved, id, table.concat({ 0, cost, ARGV[4], tenant }, ':'))
  redis.call('ZADD', reserved_at, string.format('%d', seconds() * 1000), id)
  charge(tenant, 1, cost)
  if ARGV[8] ~= '' then redis.call('ZADD', overdue, ARGV[8], id) end
  return { 0 }
end

-- group, lanes, request id, 1 if it was written: its reservation holds; else it is given back, if nobody confirmed it
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

-- group, lanes, age in ms, request id … : give back reservations that nobody confirmed within that time
-- -> the ids of the others that are that old
function commands.lapsed()
  local old = {}
  local before = string.format('%d', seconds() * 1000 - ARGV[4])
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', reserved_at, '-inf', before)) do
    if reservation(id) == '1' and is_id(id) then old[#old + 1] = id else unreserve(id) end
  end
  return old
end

-- The class whose turn it is among those that wait and have room, or nil.
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

-- The request of a class whose turn it is: its tenant, the tenant's virtual time, its id, and what waits. nil where
-- there is none; what another program wrote into the lanes is struck off on the way.
local function first_of(class)
  while true do
    local first = redis.call('ZRANGE', lanes[class], 0, 0, 'WITHSCORES')
    local tenant = first[1]
    if not tenant then return nil end
    local id = redis.call('ZRANGE', lane_of(class, tenant), 0, 0)[1]
    local item = id and waiter(id)
    if item then return tenant, finite(first[2]), id, item end
    if id then
      redis.call('ZREM', lane_of(class, tenant), id)
      redis.call('HDEL', waiting, id)
      set_aside(counters, lane_of(class, tenant) .. ':' .. id, 'an id without a request')
    else
      redis.call('ZREM', lanes[class], tenant)
    end
  end
end

-- Take the next request of a class, unless it needs more seats than there are. One that needs more than an idle
-- worker has is taken by an idle one, which refuses it. -> {class, entry, payload, attempt}
local function take(class, start, weight, room, capacity)
  local tenant, began, id, item = first_of(class)
  if not tenant then
    set('n#' .. class, 0) -- the lanes were deleted
    return nil
  end
  if item.seats > room[class] and room[class] < capacity then
    room[class] = 0
    return nil
  end
  local entry = enter(class, item.payload, id)
  set('clock', math.max(number('clock'), start))
  set('v:' .. class, start + item.cost / weight)
  set('clock:' .. class, math.max(number('clock:' .. class), began))
  redis.call('ZADD', lanes[class], began + item.cost, tenant)
  leave(class, tenant, id, item.cost)
  redis.call('ZREMRANGEBYSCORE', resting[class], '-inf', began)
  drained(class, item.cost)
  for other = 1, CLASSES do room[other] = room[other] - item.seats end
  return { class, entry, item.payload, 1 }
end

-- Hold the entries that were taken of a class: by their ids, so that nothing which another program adds comes between.
local function hold(class, taken)
  if not taken[1] then return end
  local ids = {}
  for i, item in ipairs(taken) do ids[i] = item[2] end
  local options = { 'RETRYCOUNT', 1, 'FORCE', 'JUSTID', 'LASTID', ids[#ids] }
  for _, option in ipairs(options) do ids[#ids + 1] = option end
  redis.call('XCLAIM', streams[class], ARGV[2], ARGV[4], 0, unpack(ids))
end

-- Requests that each worker holds, by name; those that hold none are left out.
local function held_by_worker()
  local held = {}
  for class = 1, CLASSES do
    local found = redis.pcall('XPENDING', streams[class], ARGV[2])
    for _, consumer in ipairs(found[4] or {}) do -- no stream, no workers
      held[consumer[1]] = (held[consumer[1]] or 0) + tonumber(consumer[2])
    end
  end
  return held
end

-- What a worker holds, and the other workers that pull: {name, held, capacity} each.
local function loads(worker, capacity)
  local all, others, known = redis.call('HGETALL', pullers), {}, nil
  for i = 1, #all, 2 do
    if all[i] == worker then
      known = tonumber(all[i + 1])
    else
      others[#others + 1] = { name = all[i], capacity = tonumber(all[i + 1]) or 0 }
    end
  end
  if known ~= capacity then redis.call('HSET', pullers, worker, capacity) end
  if not others[1] then return 0, others end
  local held = held_by_worker()
  for _, other in ipairs(others) do other.held = held[other.name] or 0 end
  return held[worker] or 0, others
end

-- How many requests the less loaded workers take until their load, the part of their seats that is taken, is `load`.
local function owed(others, load)
  local sum = 0
  for _, other in ipairs(others) do
    local level = math.ceil(math.min(1, load) * other.capacity)
    sum = sum + math.max(0, level - other.held)
  end
  return sum
end

-- Strike off the less loaded workers, which have not taken what was left to them, until they pull again.
local function strike_off(others, load)
  for _, other in ipairs(others) do
    if other.held < load * other.capacity then redis.call('HDEL', pullers, other.name) end
  end
end

-- group, lanes, worker, its seats, then for each class its weight and the seats that are free for it, then the
-- ms for which requests are left to less loaded workers
-- -> {entries {class, id, payload, attempt}, how many still wait, 1 if some of these are left to others}
function commands.pull()
  local out, room, weight, taken, capacity = {}, {}, {}, {}, tonumber(ARGV[5])
  read_all()
  for class = 1, CLASSES do
    weight[class], room[class], taken[class] = tonumber(ARGV[4 + 2 * class]), tonumber(ARGV[5 + 2 * class]), {}
    if number('n#' .. class) > 0 and not drain(out, class) then room[class] = 0 end
  end
  local held, others = loads(ARGV[4], capacity)
  local since, some, spared = number('spared'), false, false
  local patient = since == 0 or (seconds() - since) * 1000 < tonumber(ARGV[6 + 2 * CLASSES])
  local class, start = next_class(room)
  while class do
    if number('n#1') + number('n#2') + number('n#3') <= owed(others, held / capacity) then
      if patient then
        spared = true
        break
      end
      strike_off(others, held / capacity)
      others = {}
    end
    local item = take(class, start, weight[class], room, capacity)
    if item then
      taken[class][#taken[class] + 1], held, some = item, held + 1, true
    end
    class, start = next_class(room)
  end
  local left = number('n#1') + number('n#2') + number('n#3')
  if some or left == 0 then set('spared', 0) end
  if spared and number('spared') == 0 then set('spared', seconds()) end
  for each = 1, CLASSES do
    hold(each, taken[each])
    for _, item in ipairs(taken[each]) do out[#out + 1] = item end
  end
  return { out, left, spared and 1 or 0 }
end

-- group, lanes, worker, most, lease in ms -> entries whose holder was silent for that long
function commands.claim()
  local out = {}
  for class = 1, CLASSES do
    drain(out, class)
    local cursor, dropped = '0-0', 0
    repeat
      local room = tonumber(ARGV[5]) - #out
      if room <= 0 then break end
      local reply = grouped(class, function()
        return redis.pcall('XAUTOCLAIM', streams[class], ARGV[2], ARGV[4], ARGV[6], cursor, 'COUNT', room)
      end)
      cursor = reply[1]
      dropped = dropped + handed(out, class, reply[2], nil)
    until cursor == '0-0' or dropped >= DRAINED
  end
  return out
end

-- group, lanes, worker, then class, id … -> the class, id … that the worker no longer holds
function commands.renew()
  local lost = {}
  for i = 5, #ARGV, 2 do
    local class, id = tonumber(ARGV[i]), ARGV[i + 1]
    if holder(class, id) == ARGV[4] then
      redis.call('XCLAIM', streams[class], ARGV[2], ARGV[4], 0, id, 'JUSTID')
    else
      lost[#lost + 1] = ARGV[i]
      lost[#lost + 1] = id
    end
  end
  return lost
end

-- group, lanes, worker, lease in ms, wake channel, then class, id …: claimable at once, and not counted as lost
function commands.release()
  for i = 7, #ARGV, 2 do
    local class, id = tonumber(ARGV[i]), ARGV[i + 1]
    local owner, attempt = holder(class, id)
    if owner == ARGV[4] then
      redis.call('XCLAIM', streams[class], ARGV[2], ARGV[4], 0, id, 'IDLE', ARGV[5], 'RETRYCOUNT', attempt - 1, 'JUSTID')
    end
  end
  redis.call('PUBLISH', ARGV[6], 'released')
end

-- group, lanes, then class, id, request id …
function commands.acknowledge()
  for i = 4, #ARGV, 3 do
    local stream = streams[tonumber(ARGV[i])]
    redis.pcall('XACK', stream, ARGV[2], ARGV[i + 1])
    redis.call('XDEL', stream, ARGV[i + 1])
    redis.call('ZREM', overdue, ARGV[i + 2])
    redis.call('HDEL', accepted, ARGV[i + 2])
  end
end

-- group, lanes, class, id, reason: an entry that is no request
function commands.refuse()
  local class = tonumber(ARGV[4])
  local entry = redis.call('XRANGE', streams[class], ARGV[5], ARGV[5])[1]
  if entry then drop(class, entry, ARGV[6]) end
end

-- group, lanes, class, tenant, request id
function commands.discard()
  local item = waiter(ARGV[6])
  if not item then
    if unreserve(ARGV[6]) then redis.call('ZREM', overdue, ARGV[6]) end
    return
  end
  leave(tonumber(ARGV[4]), ARGV[5], ARGV[6], item.cost)
  redis.call('ZREM', overdue, ARGV[6])
  redis.call('HDEL', accepted, ARGV[6])
end

-- group, lanes -> {waiting, their tokens, held, age of the oldest waiting one in ms}
function commands.depth()
  local held, oldest = 0, nil
  for class = 1, CLASSES do
    held = held + redis.call('XLEN', streams[class])
    for _, tenant in ipairs(redis.call('ZRANGE', lanes[class], 0, -1)) do
      local first = redis.call('ZRANGE', lane_of(class, tenant), 0, 0)[1]
      local item = first and waiter(first)
      if item and (not oldest or item.born < oldest) then oldest = item.born end
    end
  end
  local promised = redis.call('ZRANGE', reserved_at, 0, 0, 'WITHSCORES')[2]
  if promised then oldest = math.min(oldest or math.huge, tonumber(promised)) end
  local age = oldest and math.max(0, math.floor(seconds() * 1000) - oldest) or 0
  return { number('n'), number('t'), held, age }
end

-- group, lanes, class, tenant, request id -> {place in the class from 1, seconds or ''}; nil once it has left.
-- The other tenants' requests before it: as many each as its own tenant has, while there are any.
function commands.outlook()
  local class = tonumber(ARGV[4])
  local lane = lane_of(class, ARGV[5])
  local rank = redis.call('ZRANK', lane, ARGV[6])
  if not rank then
    if reservation(ARGV[6]) ~= '1' then return nil end
    return { number('n#' .. class) + (redis.call('ZRANK', reserved_at, ARGV[6]) or 0) + 1, '' }
  end
  local others = number('n#' .. class) - redis.call('ZCARD', lane)
  local place = rank + 1 + math.min(others, (rank + 1) * (redis.call('ZCARD', lanes[class]) - 1))
  local speed = rate(class)
  return { place, speed and speed > 0 and string.format('%.3f', place / speed) or '' }
end

-- group, lanes, most -> request ids whose deadline has passed
function commands.overdue()
  local found, now = {}, string.format('%d', seconds() * 1000)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', overdue, '-inf', now, 'LIMIT', 0, ARGV[4])) do
    if is_id(id) then
      found[#found + 1] = id
    else
      redis.call('ZREM', overdue, id)
      set_aside(overdue, overdue .. ':' .. id, 'not the id of a request')
    end
  end
  return found
end

-- group, lanes, request id …
function commands.forget()
  redis.call('ZREM', overdue, unpack(ARGV, 4))
  redis.call('HDEL', accepted, unpack(ARGV, 4))
end

-- Whether a request waits where `pull` finds it.
local function waits(class, tenant, id)
  return redis.call('HEXISTS', waiting, id) == 1 and redis.call('ZSCORE', lane_of(class, tenant), id)
    and redis.call('ZSCORE', lanes[class], tenant)
end

-- The place of an accepted request: its class, cost and tenant if it waits, true if it is held, nil if it is lost.
local function place_of(id, known_place)
  local class, cost, tenant = string.match(known_place, '^w:([1-3]):(%d+):(.*)$')
  if class then
    class = tonumber(class)
    if waits(class, tenant, id) then return class, tonumber(cost), tenant end
    leave(class, tenant, id, tonumber(cost))
    return nil
  end
  local of, entry = string.match(known_place, '^h:([1-3]):(%d+%-%d+)$')
  return of and redis.call('XRANGE', streams[tonumber(of)], entry, entry)[1] and true
end

local function tally(counts, class, cost, tenant)
  if class then counts['n#' .. class] = (counts['n#' .. class] or 0) + 1 end
  for _, whose in ipairs({ '', ':' .. tenant }) do
    counts['n' .. whose] = (counts['n' .. whose] or 0) + 1
    counts['t' .. whose] = (counts['t' .. whose] or 0) + cost
  end
end

-- Write the counters of what waits and is reserved anew, unless requests wait that an earlier version let in.
local function recount(counts, waiting_known)
  if redis.call('HLEN', waiting) ~= waiting_known then return end
  local promised = redis.call('HGETALL', reserved)
  for i = 1, #promised, 2 do
    local _, cost, _, tenant = reservation(promised[i])
    if cost then tally(counts, nil, tonumber(cost), tenant) end
  end
  local all = redis.call('HGETALL', counters)
  for i = 1, #all, 2 do
    local counted = all[i] == 'n' or all[i] == 't' or string.find(all[i], '^[nt][:#]')
    if counted and finite(all[i + 1]) ~= (counts[all[i]] or 0) then set(all[i], counts[all[i]] or 0) end
  end
  for field, value in pairs(counts) do
    if number(field) ~= value then set(field, value) end
  end
end

-- group, lanes, most -> ids of accepted requests that neither wait nor are held, until `forget` or `discard`
function commands.lost()
  local lost, counts, waiting_known = {}, {}, 0
  local all = redis.call('HGETALL', accepted)
  for i = 1, #all, 2 do
    local id = all[i]
    if not is_id(id) then
      redis.call('HDEL', accepted, id)
      set_aside(accepted, accepted .. ':' .. id, 'not the id of a request', id)
    else
      local class, cost, tenant = place_of(id, all[i + 1])
      if tenant then
        waiting_known = waiting_known + 1
        tally(counts, class, cost, tenant)
      elseif not class and #lost < tonumber(ARGV[4]) then
        redis.call('HSET', accepted, id, 'l')
        lost[#lost + 1] = id
      end
    end
  end
  recount(counts, waiting_known)
  return lost
end

-- group, lanes, request id … -> those that neither wait nor are held
function commands.missing()
  local missing, held = {}, nil
  for i = 4, #ARGV do
    if redis.call('HEXISTS', waiting, ARGV[i]) == 0 and redis.call('HEXISTS', reserved, ARGV[i]) == 0 then
      held = held or all_held()
      if not held[ARGV[i]] then missing[#missing + 1] = ARGV[i] end
    end
  end
  return missing
end

-- group, lanes, silence in ms -> how many workers were struck off
function commands.tidy()
  local gone = 0
  for class = 1, CLASSES do
    local found = redis.pcall('XINFO', 'CONSUMERS', streams[class], ARGV[2])
    for _, consumer in ipairs(found.err and {} or found) do -- no stream, no workers
      local fact = {}
      for i = 1, #consumer, 2 do fact[consumer[i]] = consumer[i + 1] end
      if fact.pending == 0 and fact.idle > tonumber(ARGV[4]) then
        redis.call('XGROUP', 'DELCONSUMER', streams[class], ARGV[2], fact.name)
        redis.call('HDEL', pullers, fact.name)
        gone = gone + 1
      end
    end
  end
  return gone
end

local reply = commands[ARGV[1]]()
write_back()
return reply
