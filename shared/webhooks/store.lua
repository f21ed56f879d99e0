-- Webhooks. ARGV[1] names a command; KEYS: ids by the time in ms at which they are due, which for a claimed webhook is
-- the end of its lease; the hash of one webhook, if the command is about one. Its fields: 'w' the webhook as JSON,
-- 'epoch' the lease epoch, 'claimed' while it is claimed, 'woken' if its work ended meanwhile.

local due, hook = KEYS[1], KEYS[2]
local LONGEST_MS = 86400000 -- between attempts: what a receiver's Retry-After may ask for
local commands = {}

-- id, webhook, ms until it is due
function commands.add()
  if redis.call('EXISTS', hook) == 1 then return end
  redis.call('HSET', hook, 'w', ARGV[3], 'epoch', 0)
  redis.call('ZADD', due, now_ms() + ARGV[4], ARGV[2])
end

-- -> webhook or nil
function commands.get() return redis.call('HGET', hook, 'w') end

-- id: the work has ended. A claimed webhook becomes due as soon as its holder updates it.
function commands.wake()
  if redis.call('EXISTS', hook) == 0 then return end
  if redis.call('HGET', hook, 'claimed') then
    redis.call('HSET', hook, 'woken', 1)
  elseif redis.call('ZSCORE', due, ARGV[2]) then
    redis.call('ZADD', due, now_ms(), ARGV[2])
  end
end

-- prefix of the hashes, most, lease in ms -> {id, webhook, lease epoch} …
-- The ids are known here only, so the keys of the hashes, in the same slot, are made here.
function commands.claim()
  local time, found = now_ms(), {}
  for _, id in ipairs(expired_leases(due, time, ARGV[3], LONGEST_MS)) do
    local key = ARGV[2] .. id
    local webhook = redis.call('HGET', key, 'w')
    if webhook then
      local epoch = next_epoch(key, 'epoch')
      redis.call('HSET', key, 'claimed', 1)
      hold_until(due, id, time + ARGV[4])
      found[#found + 1] = { id, webhook, epoch }
    else
      redis.call('ZREM', due, id)
    end
  end
  return found
end

-- id, lease epoch, webhook, ms until it is due or '' if it is done, ms to keep it then -> 1, or 0 if the lease is lost
function commands.update()
  if not is_current(hook, 'epoch', ARGV[3]) then return 0 end
  local woken = redis.call('HGET', hook, 'woken')
  redis.call('HSET', hook, 'w', ARGV[4])
  redis.call('HDEL', hook, 'claimed', 'woken')
  if ARGV[5] == '' then
    redis.call('ZREM', due, ARGV[2])
    redis.call('PEXPIRE', hook, ARGV[6])
  else
    redis.call('ZADD', due, now_ms() + (woken and 0 or ARGV[5]), ARGV[2])
  end
  return 1
end

-- id, lease epoch
function commands.drop()
  if not is_current(hook, 'epoch', ARGV[3]) then return end
  redis.call('ZREM', due, ARGV[2])
  redis.call('DEL', hook)
end

-- prefix of the hashes, id: set aside what another program wrote
function commands.refuse()
  local key = ARGV[2] .. ARGV[3]
  set_aside(due, key, 'not a webhook', redis.call('HGET', key, 'w') or '')
  redis.call('ZREM', due, ARGV[3])
  redis.call('DEL', key)
end

return commands[ARGV[1]]()
