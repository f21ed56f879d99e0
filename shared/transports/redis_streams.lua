-- The queue's commands. ARGV[1] names one; all keys share the model's slot.
-- KEYS: the queues, most urgent first, then the counters hash. A class is the index of its queue, from 1.
-- counters: added:<class> requests ever queued, taken:<class> those that left the waiting part.

local counters = KEYS[#KEYS]
local classes = #KEYS - 1
local commands = {}

local function number(field) return tonumber(redis.call('HGET', counters, field) or 0) end

local function waiting()
  local sum = 0
  for class = 1, classes do sum = sum + number('added:' .. class) - number('taken:' .. class) end
  return sum
end

-- The consumer group appears with the first call that needs it.
local function grouped(class, call)
  local reply = call()
  if type(reply) == 'table' and reply.err and string.find(reply.err, 'NOGROUP', 1, true) then
    redis.call('XGROUP', 'CREATE', KEYS[class], ARGV[2], '0', 'MKSTREAM')
    reply = call()
  end
  if type(reply) == 'table' and reply.err then error(reply.err) end
  return reply
end

-- What is known of one held entry: its consumer and how often it was delivered, or nil.
local function holder(class, id)
  local found = grouped(class, function()
    return redis.pcall('XPENDING', KEYS[class], ARGV[2], id, id, 1)
  end)
  if found[1] then return found[1][2], found[1][4] end
end

local function handed(out, class, entries, attempt)
  for _, entry in ipairs(entries) do
    if entry[2] then
      out[#out + 1] = { class, entry[1], entry[2][2], attempt or select(2, holder(class, entry[1])) }
    end
  end
end

-- group, class, bound, payload, wake channel -> {entry id, ordinal}, or {} at the bound
function commands.publish()
  local class = tonumber(ARGV[3])
  if waiting() >= tonumber(ARGV[4]) then return {} end
  local id = redis.call('XADD', KEYS[class], '*', 'r', ARGV[5])
  local ordinal = redis.call('HINCRBY', counters, 'added:' .. class, 1)
  redis.call('PUBLISH', ARGV[6], '1')
  return { id, ordinal }
end

-- group, worker, room -> entries {class, id, payload, attempt}
function commands.pull()
  local out = {}
  for class = 1, classes do
    local room = tonumber(ARGV[4]) - #out
    if room <= 0 then break end
    local reply = grouped(class, function()
      return redis.pcall('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', room, 'STREAMS', KEYS[class], '>')
    end)
    if reply then
      local entries = reply[1][2]
      redis.call('HINCRBY', counters, 'taken:' .. class, #entries)
      handed(out, class, entries, 1)
    end
  end
  return out
end

-- group, worker, room, lease in ms -> entries whose holder was silent for that long
function commands.claim()
  local out = {}
  for class = 1, classes do
    local cursor = '0-0'
    repeat
      local room = tonumber(ARGV[4]) - #out
      if room <= 0 then break end
      local reply = grouped(class, function()
        return redis.pcall('XAUTOCLAIM', KEYS[class], ARGV[2], ARGV[3], ARGV[5], cursor, 'COUNT', room)
      end)
      cursor = reply[1]
      handed(out, class, reply[2], nil)
    until cursor == '0-0'
  end
  return out
end

-- group, worker, then class, id … -> the class, id … that the worker no longer holds
function commands.renew()
  local lost = {}
  for i = 4, #ARGV, 2 do
    local class, id = tonumber(ARGV[i]), ARGV[i + 1]
    if holder(class, id) == ARGV[3] then
      redis.call('XCLAIM', KEYS[class], ARGV[2], ARGV[3], 0, id, 'JUSTID')
    else
      lost[#lost + 1] = ARGV[i]
      lost[#lost + 1] = id
    end
  end
  return lost
end

-- group, worker, lease in ms, wake channel, then class, id …: claimable at once, and not counted as a lost worker
function commands.release()
  for i = 6, #ARGV, 2 do
    local class, id = tonumber(ARGV[i]), ARGV[i + 1]
    local owner, attempt = holder(class, id)
    if owner == ARGV[3] then
      redis.call('XCLAIM', KEYS[class], ARGV[2], ARGV[3], 0, id, 'IDLE', ARGV[4], 'RETRYCOUNT', attempt - 1, 'JUSTID')
    end
  end
  redis.call('PUBLISH', ARGV[5], '1')
end

-- group, class, id: done if held, discarded if it still waits
function commands.acknowledge()
  local class = tonumber(ARGV[3])
  local held = redis.pcall('XACK', KEYS[class], ARGV[2], ARGV[4])
  local removed = redis.call('XDEL', KEYS[class], ARGV[4])
  if held == 0 and removed == 1 then redis.call('HINCRBY', counters, 'taken:' .. class, 1) end
end

-- group -> {waiting, held, age of the oldest waiting entry in ms}
function commands.depth()
  local length, oldest = 0, nil
  for class = 1, classes do
    length = length + redis.call('XLEN', KEYS[class])
    if number('added:' .. class) > number('taken:' .. class) then
      local last = '0-0'
      for _, group in ipairs(redis.pcall('XINFO', 'GROUPS', KEYS[class])) do last = group[8] end
      local first = redis.call('XRANGE', KEYS[class], '(' .. last, '+', 'COUNT', 1)[1]
      local born = first and tonumber(string.match(first[1], '^%d+'))
      if born and (not oldest or born < oldest) then oldest = born end
    end
  end
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local waits = waiting()
  return { waits, length - waits, oldest and math.max(0, now - oldest) or 0 }
end

-- group, class, ordinal -> how many are before it, itself included
function commands.position()
  return math.max(0, tonumber(ARGV[4]) - number('taken:' .. ARGV[3]))
end

return commands[ARGV[1]]()
