-- Leases of held requests. The stream's consumer group is the lease: its owner is the entry's consumer, its deadline the
-- lease after the entry's last delivery or heartbeat (its idle time), its epoch the number of deliveries.

-- -> {class, entry, how often it was delivered} of held requests whose lease has expired, the most urgent first. Their
-- workers are forgotten until they pull again.
local function expired(lease)
  local found = {}
  for class = 1, CLASSES do
    local facts = grouped(class, function()
      return redis.pcall('XPENDING', streams[class], ARGV[2], 'IDLE', lease, '-', '+', MAX_EXPIRED)
    end)
    for _, fact in ipairs(facts) do
      forget_worker(fact[2])
      found[#found + 1] = { class, fact[1], fact[4] }
    end
  end
  return found
end

-- Give an expired entry to the worker. -> {class, entry, payload, attempt}; nil for one that was deleted, or is foreign
local function take_over(item, lease)
  local class, id, count = unpack(item)
  local entry = redis.call('XCLAIM', streams[class], ARGV[2], ARGV[4], lease, id)[1]
  if not entry then return nil end
  local payload, job = content(entry)
  if payload then
    if any_routes() then move_route(job, ARGV[4]) end
    return { class, id, payload, count + 1 }
  end
  drop(class, entry, 'not an entry of this queue')
end

-- group, lanes, worker, its seats, most, lease in ms, ms for which requests are left to less loaded workers, wake channel,
-- 1 if requests are aimed at this worker
-- -> entries {class, entry, payload, attempt} whose lease has expired, how many are left, 1 if they are left to others
function commands.claim()
  local out, capacity, most, lease, spare_ms = {}, tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8])
  for class = 1, CLASSES do drain(class, ARGV[9]) end
  local items = expired(lease)
  if ARGV[10] == '1' then see(ARGV[4], select(2, sighting(redis.call('HGET', seen, ARGV[4]))) or 0) end
  if not items[1] then
    if number('left') ~= 0 then set('left', 0) end
    return { out, 0, 0 }
  end
  local held, others = loads(ARGV[4], capacity)
  local since, spared, next_item = number('left'), false, 1
  while items[next_item] and #out < most do
    spared = leaves(#items - next_item + 1, others, held / capacity, since, spare_ms)
    if spared then break end
    local taken = take_over(items[next_item], lease)
    if taken then out[#out + 1], held = taken, held + 1 end
    next_item = next_item + 1
  end
  if out[1] or not spared then set('left', 0) end
  if spared and number('left') == 0 then
    set('left', seconds())
    redis.call('PUBLISH', ARGV[9], 'released')
  end
  return { out, #items - next_item + 1, spared and 1 or 0 }
end

-- group, lanes, worker, 1 if requests are aimed at it, then class, entry …
-- -> the class, entry … that the worker no longer holds
function commands.renew()
  local lost = {}
  if ARGV[5] == '1' then see_again(ARGV[4]) end
  for i = 6, #ARGV, 2 do
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
  local routed = any_routes()
  for i = 4, #ARGV, 3 do
    local stream = streams[tonumber(ARGV[i])]
    redis.pcall('XACK', stream, ARGV[2], ARGV[i + 1])
    redis.call('XDEL', stream, ARGV[i + 1])
    redis.call('ZREM', overdue, ARGV[i + 2])
    redis.call('HDEL', accepted, ARGV[i + 2])
    if routed then end_route(ARGV[i + 2]) end
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
        forget_worker(fact.name)
        gone = gone + 1
      end
    end
  end
  local all, now = redis.call('HGETALL', seen), milliseconds()
  for i = 1, #all, 2 do
    local at = sighting(all[i + 1])
    if not at or now - at > tonumber(ARGV[4]) then forget_worker(all[i]) end
  end
  return gone
end
