-- What operators see of a queue and change in it. Every call does bounded work.

local MAX_SCANNED = 5000 -- accepted requests that one call looks at

-- A tenant gains nothing by having been paused: its lanes go on where those of the others are.
local function catch_up(tenant)
  for class = 1, CLASSES do
    local virtual = redis.call('ZSCORE', lanes[class], tenant)
    local clock = number('clock:' .. class)
    if virtual and finite(virtual) < clock then redis.call('ZADD', lanes[class], clock, tenant) end
    if virtual then set('v:' .. class, math.max(number('v:' .. class), number('clock'))) end
  end
end

-- group, lanes, tenant or '' for the model, new state, how many gates there may be, wake channel
-- -> 0 if there would be too many
function commands.gate()
  local field, state = ARGV[4] == '' and '' or ':' .. ARGV[4], ARGV[5]
  local before = redis.call('HGET', gates, field)
  if state == 'open' then
    redis.call('HDEL', gates, field)
  elseif before or redis.call('HLEN', gates) < tonumber(ARGV[6]) then
    redis.call('HSET', gates, field, state)
  else
    return 0
  end
  note_gate(field, before, state)
  if before == 'paused' and state ~= 'paused' then
    if field ~= '' then catch_up(ARGV[4]) end
    redis.call('PUBLISH', ARGV[7], 'published')
  end
  return 1
end

-- group, lanes -> the model's gate
function commands.state() return redis.call('HGET', gates, '') or 'open' end

-- -> the names of tenants that have a gate, wait or were served lately, at most `most`; and 1 if there are more
local function tenants_of(served_keys, most)
  local names, known, more = {}, {}, 0
  local function add(tenant)
    if known[tenant] then return end
    known[tenant] = true
    if #names < most then names[#names + 1] = tenant else more = 1 end
  end
  for _, field in ipairs(redis.call('HKEYS', gates)) do
    if field ~= '' then add(string.sub(field, 2)) end
  end
  for class = 1, CLASSES do
    for _, tenant in ipairs(redis.call('ZRANGE', lanes[class], 0, most)) do add(tenant) end
  end
  for _, key in ipairs(served_keys) do
    for _, member in ipairs(redis.call('ZRANGE', key, 0, most, 'REV')) do add(string.sub(member, 3)) end
  end
  return names, more
end

-- -> for each class: requests that wait in a tenant's lane, tokens that it was served lately, and the time of arrival of
-- the oldest that waits, or 0
local function tenant_row(tenant, served_keys)
  local row = { tenant, redis.call('HGET', gates, ':' .. tenant) or 'open', string.format('%d', number('t:' .. tenant)) }
  for class = 1, CLASSES do
    local lane, served = lane_of(class, tenant), 0
    for _, key in ipairs(served_keys) do
      served = served + finite(redis.call('ZSCORE', key, class .. ':' .. tenant) or 0)
    end
    row[#row + 1] = redis.call('ZCARD', lane)
    row[#row + 1] = string.format('%d', served)
    row[#row + 1] = oldest_in(class, tenant) or 0
  end
  return row
end

-- group, lanes, how many tenants to describe
-- -> {gate, time in ms, waiting, their tokens, held of each class …, waiting of each class …, {tenant …}, 1 if there are
-- more}
function commands.survey()
  local keys = { served_key(0), served_key(-1) }
  local names, more = tenants_of(keys, tonumber(ARGV[4]))
  local reply = { redis.call('HGET', gates, '') or 'open', milliseconds(), number('n'), string.format('%d', number('t')) }
  for class = 1, CLASSES do reply[#reply + 1] = redis.call('XLEN', streams[class]) end
  for class = 1, CLASSES do reply[#reply + 1] = number('n#' .. class) end
  local rows = {}
  for i, tenant in ipairs(names) do rows[i] = tenant_row(tenant, keys) end
  reply[#reply + 1], reply[#reply + 2] = rows, more
  return reply
end

-- group, lanes, tenant -> 1 if it has a gate, waits or was served lately
function commands.knows()
  if redis.call('HEXISTS', gates, ':' .. ARGV[4]) == 1 then return 1 end
  for class = 1, CLASSES do
    if redis.call('ZSCORE', lanes[class], ARGV[4]) then return 1 end
    for period = -1, 0 do
      if redis.call('ZSCORE', served_key(period), class .. ':' .. ARGV[4]) then return 1 end
    end
  end
  return 0
end

-- group, lanes, most -> ids of held requests
function commands.holding()
  local ids, most, seen_entries, cursor = {}, tonumber(ARGV[4]), 0, '0'
  repeat
    local page = redis.call('HSCAN', accepted, cursor, 'COUNT', 500)
    cursor = page[1]
    for i = 1, #page[2], 2 do
      seen_entries = seen_entries + 1
      if #ids < most and is_id(page[2][i]) and string.find(page[2][i + 1], '^h:') then ids[#ids + 1] = page[2][i] end
    end
  until cursor == '0' or seen_entries >= MAX_SCANNED or #ids >= most
  return ids
end

-- group, lanes, end of the range as XREVRANGE takes it, most -> the stream id and request id of accepted requests,
-- newest first
function commands.recent()
  local found, last, most, looked = {}, ARGV[4], tonumber(ARGV[5]), 0
  repeat -- as long as other programs' entries are passed over: a short page means that there are no more
    local page = redis.call('XREVRANGE', recent, last, '-', 'COUNT', most)
    for _, entry in ipairs(page) do
      local id = entry[2][2]
      if entry[2][1] == 'i' and id and is_id(id) and #found < 2 * most then
        found[#found + 1] = entry[1]
        found[#found + 1] = id
      end
      last, looked = '(' .. entry[1], looked + 1
    end
  until #page < most or #found >= 2 * most or looked >= MAX_SCANNED
  return found
end
