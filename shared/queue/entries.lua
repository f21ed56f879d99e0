-- The stream of a class: entries that workers hold. Entries of another form are foreign, and are set aside.

local NO_WORKER = 'none' -- the consumer of entries that no worker holds
local LAPSED_MS = 1e9 -- idle time of an entry whose lease has expired, longer than any lease

-- Run a command that needs the consumer group, which the first such command creates.
local function grouped(class, call)
  local reply = call()
  if type(reply) == 'table' and reply.err and string.find(reply.err, 'NOGROUP', 1, true) then
    redis.call('XGROUP', 'CREATE', streams[class], ARGV[2], '0', 'MKSTREAM')
    reply = call()
  end
  if type(reply) == 'table' and reply.err then error(reply) end -- the table, not its text, which would get a prefix
  return reply
end

-- -> the worker that holds an entry and how often the entry was delivered, or nil
local function holder(class, id)
  local found = grouped(class, function()
    return redis.pcall('XPENDING', streams[class], ARGV[2], id, id, 1)
  end)
  if found[1] then return found[1][2], found[1][4] end
end

-- -> payload and id of an entry's request; nil for a foreign entry
local function content(entry)
  local fields = entry[2]
  if fields and #fields == 4 and fields[1] == 'r' and fields[3] == 'i' then return fields[2], fields[4] end
end

-- Remove an entry that cannot be run, and set it aside.
local function drop(class, entry, reason)
  redis.call('XACK', streams[class], ARGV[2], entry[1])
  redis.call('XDEL', streams[class], entry[1])
  set_aside(streams[class], streams[class] .. ':' .. entry[1], reason, table.concat(entry[2] or {}, ' '))
end

-- Make an entry claimable at once. For one that no worker holds: it was never delivered, or its lease was deleted.
local function offer(class, id)
  grouped(class, function()
    return redis.pcall('XCLAIM', streams[class], ARGV[2], NO_WORKER, 0, id, 'IDLE', LAPSED_MS, 'RETRYCOUNT', 0, 'FORCE',
      'JUSTID')
  end)
end

-- Offer the entries that were never delivered: only another program, or a call that failed half-way, leaves such
-- entries, or an earlier delivery was forgotten with the consumer group. Foreign ones are set aside.
-- -> false if there may be more of them
local function drain(class, wake)
  local reply = grouped(class, function()
    return redis.pcall('XREADGROUP', 'GROUP', ARGV[2], NO_WORKER, 'COUNT', MAX_DRAINED, 'STREAMS', streams[class], '>')
  end)
  local entries, offered = reply and reply[1][2] or {}, false
  for _, entry in ipairs(entries) do
    if content(entry) then
      offer(class, entry[1])
      offered = true
    elseif entry[2] then
      drop(class, entry, 'not an entry of this queue')
    end
  end
  if offered then redis.call('PUBLISH', wake, 'released') end
  return #entries < MAX_DRAINED
end

-- Recreate a stream with its held entries, after another program used up its ids.
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

-- Add a request to its class's stream. -> the entry's id
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

-- -> the ids of all requests that workers hold, as a set
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

-- group, lanes, class, entry, reason: set aside an entry that is not a request
function commands.refuse()
  local class = tonumber(ARGV[4])
  local entry = redis.call('XRANGE', streams[class], ARGV[5], ARGV[5])[1]
  if entry then drop(class, entry, ARGV[6]) end
end
