-- Named locks. ARGV[1] names a command; KEYS[1] is a string that holds the lock's owner and expires with it.

local commands = {}

-- owner, ttl in ms: take the lock or renew it, unless it has another owner -> its owner now
function commands.acquire()
  local found = redis.call('GET', KEYS[1])
  if found and found ~= ARGV[2] then return found end
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return ARGV[2]
end

-- owner
function commands.release()
  if redis.call('GET', KEYS[1]) == ARGV[2] then redis.call('DEL', KEYS[1]) end
end

return commands[ARGV[1]]()
