-- Deadlines, and repair after another program deleted a part of the queue.

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
  return of and redis.call('XRANGE', streams[tonumber(of)], entry, entry)[1] and true
end

local function tally(counts, class, cost, tenant)
  if class then counts['n#' .. class] = (counts['n#' .. class] or 0) + 1 end
  for _, whose in ipairs({ '', ':' .. tenant }) do
    counts['n' .. whose] = (counts['n' .. whose] or 0) + 1
    counts['t' .. whose] = (counts['t' .. whose] or 0) + cost
  end
end

-- Rewrite the counters of waiting and reserved requests, unless requests wait that an earlier version admitted.
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

-- group, lanes, most -> ids of accepted requests that neither wait nor are held; reported until `forget` or `discard`
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

local reply = commands[ARGV[1]]()
write_back()
return reply
