-- Registered LoRA adapters, and the orders to load and unload them. ARGV[1] names a command.

local commands = {}

-- KEYS: adapters -> names and values
function commands.known() return redis.call('HGETALL', KEYS[1]) end

-- KEYS: adapters. name -> value or nil
function commands.find() return redis.call('HGET', KEYS[1], ARGV[2]) end

-- KEYS: adapters. name, value, '1' to replace, most -> '' or why it was refused
function commands.register()
  if redis.call('HEXISTS', KEYS[1], ARGV[2]) == 1 then
    if ARGV[4] ~= '1' then return 'exists' end
  elseif redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[5]) then
    return 'full'
  end
  redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
  return ''
end

-- KEYS: adapters. name -> 1 if it was there
function commands.remove() return redis.call('HDEL', KEYS[1], ARGV[2]) end

-- KEYS: any of the slot. channel, order
function commands.place() redis.call('PUBLISH', ARGV[2], ARGV[3]) end

-- KEYS: result of the order. result, ttl in ms: keep the first one
function commands.answer()
  if not redis.call('GET', KEYS[1]) then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
end

-- KEYS: result of the order -> result or nil
function commands.result() return redis.call('GET', KEYS[1]) end

return commands[ARGV[1]]()
