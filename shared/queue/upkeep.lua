-- Deadlines, and repair after another program deleted a part of the queue.

local INTACT = '*' -- a field of `accepted` that is no request's: it is missing once the hash was deleted
local MAX_WHOLE = 1000 -- accepted requests that `lost` looks at in one call
local SLICE = 500 -- of more than that, as many a call

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

-- group, lanes, request id …: their deadlines and places are dealt with
function commands.forget()
  redis.call('ZREM', overdue, unpack(ARGV, 4))
  redis.call('HDEL', accepted, unpack(ARGV, 4))
end

-- -> whether a request waits where `pull` finds it
local function waits(class, tenant, id)
  return redis.call('HEXISTS', waiting, id) == 1 and redis.call('ZSCORE', lane_of(class, tenant), id)
    and redis.call('ZSCORE', lanes[class], tenant)
end

-- -> whether the entry of a request is in its stream. If another program deleted the entry's lease (XACK, or with its
-- consumer), no command would deliver it again, so it is offered to any worker; one that still runs it loses it.
local function is_held(class, id, entry_id, wake)
  local entry = redis.call('XRANGE', streams[class], entry_id, entry_id)[1]
  if not entry or select(2, content(entry)) ~= id then return false end
  if not holder(class, entry_id) then
    offer(class, entry_id)
    redis.call('PUBLISH', wake, 'released')
  end
  return true
end

-- -> the place of an accepted request: class, cost and tenant if it waits, true if it is held, nil if it is lost
local function place_of(id, known_place)
  local class, cost, tenant = string.match(known_place, '^w:([1-3]):(%d+):(.*)$')
  if class then
    class = tonumber(class)
    if waits(class, tenant, id) then return class, tonumber(cost), tenant end
    leave(class, tenant, id, tonumber(cost))
    return nil
  end
  local of, entry = string.match(known_place, '^h:([1-3]):(%d+%-%d+)$')
  return of and is_held(tonumber(of), id, entry, ARGV[5]) or nil
end

local function tally(counts, class, cost, tenant)
  if class then counts['n#' .. class] = (counts['n#' .. class] or 0) + 1 end
  for _, whose in ipairs({ '', ':' .. tenant }) do
    counts['n' .. whose] = (counts['n' .. whose] or 0) + 1
    counts['t' .. whose] = (counts['t' .. whose] or 0) + cost
  end
end

-- Rewrite the arrivals of each lane that has more or fewer requests: another program, or an earlier version, changed
-- one of both.
local function rewrite_arrivals()
  for class = 1, CLASSES do
    for _, tenant in ipairs(redis.call('ZRANGE', lanes[class], 0, -1)) do
      local lane, arrivals = lane_of(class, tenant), arrivals_of(class, tenant)
      if redis.call('ZCARD', arrivals) ~= redis.call('ZCARD', lane) then
        redis.call('DEL', arrivals)
        for _, id in ipairs(redis.call('ZRANGE', lane, 0, -1)) do
          local item = waiter(id)
          if item then redis.call('ZADD', arrivals, item.born, id) end
        end
      end
    end
  end
end

-- Rewrite the counters of waiting and reserved requests.
local function recount(counts)
  local promised = redis.call('HGETALL', reserved)
  for i = 1, #promised, 2 do
    local _, cost, _, tenant = reservation(promised[i])
    if cost then tally(counts, nil, tonumber(cost), tenant) end
  end
  local all = redis.call('HGETALL', counters)
  for i = 1, #all, 2 do
    local counted = all[i] == 'n' or all[i] == 't' or string.find(all[i], '^[nt][:#]')
      or string.find(all[i], '^routed')
    if counted and finite(all[i + 1]) ~= (counts[all[i]] or 0) then set(all[i], counts[all[i]] or 0) end
  end
  for field, value in pairs(counts) do
    if number(field) ~= value then set(field, value) end
  end
end

-- Put a waiting request back into the set of those aimed at its worker, if another program removed it.
local function aim_again(id, worker)
  local class, tenant = string.match(redis.call('HGET', accepted, id) or '', '^w:([1-3]):%d+:(.*)$')
  local order = class and redis.call('ZSCORE', lane_of(class, tenant), id)
  if order then redis.call('ZADD', aimed_at(class, worker, tenant), order, id) end
end

-- Rewrite what follows from the routes, delete those of requests that are gone, and tally those that wait.
local function recount_routes(counts)
  local all, sums = redis.call('HGETALL', routes), {}
  for i = 1, #all, 2 do
    local cost, _, worker = route(all[i])
    if cost and redis.call('HEXISTS', accepted, all[i]) == 1 then
      sums[worker] = (sums[worker] or 0) + cost
      if redis.call('HEXISTS', waiting, all[i]) == 1 then
        aim_again(all[i], worker)
        for _, whose in ipairs({ '', ':' .. worker }) do counts['routed' .. whose] = (counts['routed' .. whose] or 0) + 1 end
      end
    else
      redis.call('HDEL', routes, all[i])
    end
  end
  local counted = redis.call('HGETALL', in_flight)
  for i = 1, #counted, 2 do
    if not sums[counted[i]] then redis.call('HDEL', in_flight, counted[i]) end
  end
  for worker, tokens in pairs(sums) do
    if finite(redis.call('HGET', in_flight, worker)) ~= tokens then
      redis.call('HSET', in_flight, worker, string.format('%d', tokens))
    end
  end
end

-- Remove what waits but was never accepted: it is foreign, or its lane and its record were deleted.
local function remove_strays()
  for _, id in ipairs(redis.call('HKEYS', waiting)) do
    if redis.call('HEXISTS', accepted, id) == 0 then
      if is_id(id) and waiter(id) then
        redis.call('HSET', accepted, id, 'l')
      else
        set_aside(waiting, waiting .. ':' .. id, 'not a request')
      end
      redis.call('HDEL', waiting, id)
    end
  end
end

-- Enter into `accepted` each request that waits or is held and is not there: another program deleted the hash or a part
-- of it, or an earlier version admitted them.
local function reindex()
  for class = 1, CLASSES do
    for _, tenant in ipairs(redis.call('ZRANGE', lanes[class], 0, -1)) do
      for _, id in ipairs(redis.call('ZRANGE', lane_of(class, tenant), 0, -1)) do
        local item = waiter(id)
        if item then redis.call('HSETNX', accepted, id, table.concat({ 'w', class, item.cost, tenant }, ':')) end
      end
    end
    for _, entry in ipairs(redis.call('XRANGE', streams[class], '-', '+')) do
      local _, id = content(entry)
      if id and is_id(id) then redis.call('HSETNX', accepted, id, 'h:' .. class .. ':' .. entry[1]) end
    end
  end
  remove_strays()
end

-- -> the accepted requests as id, place …, completed first if some are missing; and whether the hash was deleted
local function all_accepted()
  local all, known, intact = redis.call('HGETALL', accepted), 0, false
  for i = 1, #all, 2 do
    intact = intact or all[i] == INTACT
    if string.find(all[i + 1], '^w:') then known = known + 1 end
  end
  if intact and known == redis.call('HLEN', waiting) then return all, false end
  redis.call('HSET', accepted, INTACT, 1)
  reindex()
  return redis.call('HGETALL', accepted), not intact
end

-- -> whether the sizes of a queue's parts agree, so that its counters need not be made again from all requests
local function agrees()
  local size, total = redis.call('HLEN', waiting), 0
  if redis.call('HEXISTS', accepted, INTACT) == 0 or redis.call('HLEN', accepted) <= size
    or number('n') ~= size + redis.call('HLEN', reserved) or number('routed') > redis.call('HLEN', routes) then return false end
  for class = 1, CLASSES do
    local before = total
    for _, tenant in ipairs(redis.call('ZRANGE', lanes[class], 0, -1)) do
      local length = redis.call('ZCARD', lane_of(class, tenant))
      if redis.call('ZCARD', arrivals_of(class, tenant)) ~= length then return false end
      total = total + length
    end
    if number('n#' .. class) ~= total - before then return false end
  end
  return total == size
end

-- -> whether as many requests were accepted as wait and are held, and each entry of a stream has its lease. Then
-- none is missing, unless another program has put something else in its place; `missing` finds that.
local function is_complete()
  local held = 0
  for class = 1, CLASSES do
    local entries = redis.call('XLEN', streams[class])
    if redis.call('XPENDING', streams[class], ARGV[2])[1] ~= entries then return false end
    held = held + entries
  end
  return redis.call('HLEN', accepted) == redis.call('HLEN', waiting) + held + 1 -- INTACT
end

-- -> ids among accepted requests, as id, place …, that neither wait nor are held, `most` of them; those that wait are
-- tallied
local function lost_among(all, most, counts)
  local lost = {}
  for i = 1, #all, 2 do
    local id = all[i]
    if id == INTACT then
      -- not a request
    elseif not is_id(id) then
      redis.call('HDEL', accepted, id)
      set_aside(accepted, accepted .. ':' .. id, 'not the id of a request', id)
    else
      local class, cost, tenant = place_of(id, all[i + 1])
      if tenant then
        tally(counts, class, cost, tenant)
      elseif not class and #lost < most then
        redis.call('HSET', accepted, id, 'l')
        lost[#lost + 1] = id
      end
    end
  end
  return lost
end

-- group, lanes, most, wake channel, cursor: '0', and then that of the last reply until it is '0' again. A small queue, or
-- one whose parts disagree, is looked at in one call, and its counters are made again. In a large one, requests are
-- looked at only if some are missing.
-- -> ids of accepted requests that neither wait nor are held, reported until `forget` or `discard`; 1 if there may be
-- more, because the hash of accepted requests was deleted too; and the next cursor
function commands.lost()
  local counts, most = {}, tonumber(ARGV[4])
  for class = 1, CLASSES do drain(class, ARGV[5]) end
  if ARGV[6] ~= '0' or redis.call('HLEN', accepted) > MAX_WHOLE and agrees() then
    if ARGV[6] == '0' and is_complete() then return { {}, 0, '0' } end
    local cursor, all = unpack(redis.call('HSCAN', accepted, ARGV[6], 'COUNT', SLICE))
    return { lost_among(all, most, counts), 0, cursor }
  end
  local all, deleted = all_accepted()
  local lost = lost_among(all, most, counts)
  if redis.call('EXISTS', routes, in_flight) > 0 then recount_routes(counts) end
  recount(counts)
  rewrite_arrivals()
  return { lost, deleted and 1 or 0, '0' }
end

-- group, lanes, request id … -> the ids that neither wait nor are held
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
