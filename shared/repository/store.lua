-- What workers and the API tell each other about the repository. ARGV[1] names a command.

local commands = {}

-- KEYS: workers, statuses of the worker. worker, ttl in ms, its statuses, '' once it has none
function commands.report()
  if ARGV[4] == '' then
    redis.call('SREM', KEYS[1], ARGV[2])
    redis.call('DEL', KEYS[2])
    return
  end
  redis.call('SADD', KEYS[1], ARGV[2])
  redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[3])
end

-- KEYS: workers. prefix of the statuses -> worker, its statuses …
function commands.statuses()
  local found = {}
  for _, worker in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    local statuses = redis.call('GET', ARGV[2] .. worker)
    if statuses then
      found[#found + 1] = worker
      found[#found + 1] = statuses
    else
      redis.call('SREM', KEYS[1], worker)
    end
  end
  return found
end

-- KEYS: orders, their ids. model, order's id, order, channel of the workers
function commands.place()
  redis.call('HSET', KEYS[1], ARGV[2], ARGV[4])
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
  redis.call('PUBLISH', ARGV[5], ARGV[2])
end

-- KEYS: orders, their ids. ids that the caller knows … -> model, order's id, order, '' if the caller knows it …
function commands.orders()
  local known, found = {}, {}
  for i = 2, #ARGV do known[ARGV[i]] = true end
  local ids = redis.call('HGETALL', KEYS[2])
  for i = 1, #ids, 2 do
    found[#found + 1] = ids[i]
    found[#found + 1] = ids[i + 1]
    found[#found + 1] = known[ids[i + 1]] and '' or redis.call('HGET', KEYS[1], ids[i]) or '-'
  end
  return found
end

-- KEYS: loads. worker, ttl in ms -> the workers whose loading has not ended
function commands.begin_load()
  redis.call('SADD', KEYS[1], ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return redis.call('SMEMBERS', KEYS[1])
end

-- KEYS: loads. worker …
function commands.end_load()
  for i = 2, #ARGV do redis.call('SREM', KEYS[1], ARGV[i]) end
end

-- KEYS: result of the order. result, ttl in ms: keep the first one
function commands.answer()
  if not redis.call('GET', KEYS[1]) then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
end

-- KEYS: result of the order -> result or nil
function commands.result() return redis.call('GET', KEYS[1]) end

return commands[ARGV[1]]()
