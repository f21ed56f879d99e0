-- A name that belongs to whoever asks first. ARGV[1] names a command; KEYS[1] is the name.

local commands = {}

-- value, ttl in ms -> the value that it has now
function commands.hold()
  local found = redis.call('GET', KEYS[1])
  if found and found ~= ARGV[2] then return found end
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return ARGV[2]
end

-- value
function commands.release()
  if redis.call('GET', KEYS[1]) == ARGV[2] then redis.call('DEL', KEYS[1]) end
end

return commands[ARGV[1]]()
