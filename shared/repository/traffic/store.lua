-- Splits of traffic, shadow copies, and their pairs. ARGV[1] names a command.

local commands = {}

-- KEYS: splits, shadows -> all of both, each as a list of names and values
function commands.traffic() return { redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]) } end

-- KEYS: splits or shadows, pairs to remove or none. name, value
function commands.set()
  redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
  if KEYS[2] then redis.call('DEL', KEYS[2]) end
end

-- KEYS: splits or shadows. name -> 1 if it was there
function commands.remove() return redis.call('HDEL', KEYS[1], ARGV[2]) end

-- KEYS: pairs. pair, most, ttl in s
function commands.add()
  redis.call('LPUSH', KEYS[1], ARGV[2])
  redis.call('LTRIM', KEYS[1], 0, ARGV[3] - 1)
  redis.call('EXPIRE', KEYS[1], ARGV[4])
end

-- KEYS: pairs -> all, newest first
function commands.pairs() return redis.call('LRANGE', KEYS[1], 0, -1) end

return commands[ARGV[1]]()
