-- Leases of held requests. The stream's consumer group is the lease: its owner is the entry's consumer, its deadline the
-- lease after the entry's last delivery or heartbeat (its idle time), its epoch the number of deliveries.

-- Add entries to `out`, and set aside the foreign ones. -> how many were foreign
local function handed(out, class, entries)
  local dropped = 0
  for _, entry in ipairs(entries) do
    local payload = content(entry)
    if payload then
      out[#out + 1] = { class, entry[1], payload, select(2, holder(class, entry[1])) or 1 }
    elseif entry[2] then
      drop(class, entry, 'not an entry of this queue')
      dropped = dropped + 1
    end
  end
  return dropped
end

-- group, lanes, worker, most, lease in ms, wake channel -> entries whose lease has expired
function commands.claim()
  local out = {}
  for class = 1, CLASSES do
    drain(class, ARGV[7])
    local cursor, dropped = '0-0', 0
    repeat
      local room = tonumber(ARGV[5]) - #out
      if room <= 0 then break end
      local reply = grouped(class, function()
        return redis.pcall('XAUTOCLAIM', streams[class], ARGV[2], ARGV[4], ARGV[6], cursor, 'COUNT', room)
      end)
      cursor = reply[1]
      dropped = dropped + handed(out, class, reply[2])
    until cursor == '0-0' or dropped >= MAX_DRAINED
  end
  return out
end

-- group, lanes, worker, then class, entry … -> the class, entry … that the worker no longer holds
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

-- group, lanes, worker, lease in ms, wake channel, then class, entry …: claimable at once, without counting as lost
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

-- group, lanes, then class, entry, request id …
function commands.acknowledge()
  for i = 4, #ARGV, 3 do
    local stream = streams[tonumber(ARGV[i])]
    redis.pcall('XACK', stream, ARGV[2], ARGV[i + 1])
    redis.call('XDEL', stream, ARGV[i + 1])
    redis.call('ZREM', overdue, ARGV[i + 2])
    redis.call('HDEL', accepted, ARGV[i + 2])
  end
end

-- group, lanes, silence in ms: remove idle workers that were silent for that long -> how many
function commands.tidy()
  local gone = 0
  for class = 1, CLASSES do
    local found = redis.pcall('XINFO', 'CONSUMERS', streams[class], ARGV[2])
    for _, consumer in ipairs(found.err and {} or found) do -- no stream, no workers
      local fact = {}
      for i = 1, #consumer, 2 do fact[consumer[i]] = consumer[i + 1] end
      if fact.name ~= NO_WORKER and fact.pending == 0 and fact.idle > tonumber(ARGV[4]) then
        redis.call('XGROUP', 'DELCONSUMER', streams[class], ARGV[2], fact.name)
        redis.call('HDEL', pullers, fact.name)
        gone = gone + 1
      end
    end
  end
  return gone
end
