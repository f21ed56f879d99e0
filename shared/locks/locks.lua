-- Named locks. ARGV[1] names a command; KEYS[1] is a string that holds the lock's owner and expires with it.

local commands = {}

-- Let a lock expire that another program wrote without an expiry, or with one beyond any owner's.
local function bound_life(ttl)
  local left = redis.call('PTTL', KEYS[1])
  if left >= 0 and left <= tonumber(ttl) then return end
  redis.call('PEXPIRE', KEYS[1], ttl)
  if left < 0 then set_aside(KEYS[1], KEYS[1], 'a lock that does not expire') end
end

-- owner, ttl in ms: take the lock or renew it, unless it has another owner -> its owner now
function commands.acquire()
  local found = redis.call('GET', KEYS[1])
  if found and found ~= ARGV[2] then
    bound_life(ARGV[3])
    return found
  end
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return ARGV[2]
end

-- owner
function commands.release()
  if redis.call('GET', KEYS[1]) == ARGV[2] then redis.call('DEL', KEYS[1]) end
end

return commands[ARGV[1]]()
