-- Handing waiting requests to workers: an equal fraction of each worker's seats is taken.

-- Give the entries taken from a class to the worker, by their ids, so that foreign entries cannot come between.
local function hold(class, taken)
  if not taken[1] then return end
  local ids = {}
  for i, item in ipairs(taken) do ids[i] = item[2] end
  local options = { 'RETRYCOUNT', 1, 'FORCE', 'JUSTID', 'LASTID', ids[#ids] }
  for _, option in ipairs(options) do ids[#ids + 1] = option end
  redis.call('XCLAIM', streams[class], ARGV[2], ARGV[4], 0, unpack(ids))
end

-- -> requests held by each worker, by name; without idle workers
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

-- -> how many requests a worker holds, and {name, held, capacity} of each other worker that pulls
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

-- -> requests that the less loaded workers take until their load, the fraction of their seats taken, is `load`
local function owed(others, load)
  local sum = 0
  for _, other in ipairs(others) do
    local level = math.ceil(math.min(1, load) * other.capacity)
    sum = sum + math.max(0, level - other.held)
  end
  return sum
end

-- Forget the less loaded workers, which did not take what was left to them, until they pull again.
local function strike_off(others, load)
  for _, other in ipairs(others) do
    if other.held < load * other.capacity then redis.call('HDEL', pullers, other.name) end
  end
end

-- Count the tokens of requests that were taken from a class by tenant, for those who watch the shares.
local function note_served(class, taken)
  if not taken[1] then return end
  local key = served_key(0)
  for _, item in ipairs(taken) do redis.call('ZINCRBY', key, item.cost, class .. ':' .. item.tenant) end
  redis.call('PEXPIRE', key, 3 * SERVED_MS)
end

-- -> whether `count` requests are left to less loaded workers for now. If they were since `since`, and none was taken
-- within `spare_ms`, those workers are forgotten.
local function leaves(count, others, load, since, spare_ms)
  if count > owed(others, load) then return false end
  if since == 0 or (seconds() - since) * 1000 < spare_ms then return true end
  strike_off(others, load)
  for i = #others, 1, -1 do others[i] = nil end
  return false
end

-- group, lanes, worker, its seats, for each class its weight and the seats free for it, then the ms for which requests
-- are left to less loaded workers, the wake channel, the lease in ms, the ms for which requests are left to the worker
-- they are aimed at, 1 if requests are aimed at this one, and the ticks between notes of how far the classes got
-- -> {entries {class, entry, payload, attempt}, how many still wait and are not paused, 1 if some of these are left to others, how many of
-- the entries were aimed at another worker}
function commands.pull()
  local out, room, weight, taken, capacity = {}, {}, {}, {}, tonumber(ARGV[5])
  read_all()
  read_gates()
  for class = 1, CLASSES do
    weight[class], room[class], taken[class] = tonumber(ARGV[4 + 2 * class]), tonumber(ARGV[5 + 2 * class]), {}
    if number('n#' .. class) > 0 and not drain(class, ARGV[7 + 2 * CLASSES]) or paused.all then room[class] = 0 end
  end
  local unavailable = count_paused()
  local held, others = loads(ARGV[4], capacity)
  local since, spare_ms, some, spared = number('spared'), tonumber(ARGV[6 + 2 * CLASSES]), false, false
  local search = number('routed') > 0 and search_of(ARGV[4], math.max(unpack(room)),
    tonumber(ARGV[8 + 2 * CLASSES]), tonumber(ARGV[9 + 2 * CLASSES])) or nil
  local class, start = next_class(room)
  local interval = tonumber(ARGV[11 + 2 * CLASSES])
  if class then note_step(interval) end
  while class do
    spared = leaves(number('n#1') + number('n#2') + number('n#3') - unavailable, others, held / capacity, since, spare_ms)
    if spared and not search then break end
    if search then search.shares = spared end
    local item = take(class, start, weight[class], room, capacity, search, interval)
    if item then
      taken[class][#taken[class] + 1], held, some = item, held + 1, true
    end
    class, start = next_class(room)
  end
  local left = math.max(0, number('n#1') + number('n#2') + number('n#3') - unavailable)
  spared = spared and left > 0
  if some or left == 0 then set('spared', 0) end
  if spared and number('spared') == 0 then set('spared', seconds()) end
  if ARGV[10 + 2 * CLASSES] == '1' then spared = end_search(ARGV[4], search) or spared end
  for each = 1, CLASSES do
    hold(each, taken[each])
    note_served(each, taken[each])
    for _, item in ipairs(taken[each]) do out[#out + 1] = item end
  end
  return { out, left, spared and 1 or 0, search and search.returned or 0 }
end
