-- Webhooks. ARGV[1] names a command; KEYS: ids by the time in ms at which they are due; one webhook's hash, where
-- the command is about one. Fields: 'w' the webhook as JSON, 'epoch' raised by each claim, 'claimed' while claimed.

local due, hook = KEYS[1], KEYS[2]
local commands = {}

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- id, webhook, ms until it is due
function commands.add()
  if redis.call('EXISTS', hook) == 1 then return end
  redis.call('HSET', hook, 'w', ARGV[3], 'epoch', 0)
  redis.call('ZADD', due, now() + ARGV[4], ARGV[2])
end

-- -> webhook or nil
function commands.get() return redis.call('HGET', hook, 'w') end

-- id. One that is claimed is looked at again as soon as its holder is done with it.
function commands.wake()
  if redis.call('EXISTS', hook) == 0 then return end
  if redis.call('HGET', hook, 'claimed') then
    redis.call('HSET', hook, 'woken', 1)
  elseif redis.call('ZSCORE', due, ARGV[2]) then
    redis.call('ZADD', due, now(), ARGV[2])
  end
end

-- prefix of the hashes, most, lease in ms -> {id, webhook, epoch} …
function commands.claim()
  local time, found = now(), {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', time, 'LIMIT', 0, ARGV[3])) do
    local key = ARGV[2] .. id
    local webhook = redis.call('HGET', key, 'w')
    if webhook then
      if not tonumber(redis.call('HGET', key, 'epoch') or '') then redis.call('HSET', key, 'epoch', 0) end
      local epoch = redis.call('HINCRBY', key, 'epoch', 1)
      redis.call('HSET', key, 'claimed', 1)
      redis.call('ZADD', due, time + ARGV[4], id)
      found[#found + 1] = { id, webhook, epoch }
    else
      redis.call('ZREM', due, id)
    end
  end
  return found
end

-- id, epoch, webhook, ms until it is due or '' for done, ms to keep one that is done -> 1, or 0 where it is lost
function commands.update()
  if redis.call('HGET', hook, 'epoch') ~= ARGV[3] then return 0 end
  local woken = redis.call('HGET', hook, 'woken')
  redis.call('HSET', hook, 'w', ARGV[4])
  redis.call('HDEL', hook, 'claimed', 'woken')
  if ARGV[5] == '' then
    redis.call('ZREM', due, ARGV[2])
    redis.call('PEXPIRE', hook, ARGV[6])
  else
    redis.call('ZADD', due, now() + (woken and 0 or ARGV[5]), ARGV[2])
  end
  return 1
end

-- id, epoch
function commands.drop()
  if redis.call('HGET', hook, 'epoch') ~= ARGV[3] then return end
  redis.call('ZREM', due, ARGV[2])
  redis.call('DEL', hook)
end

-- prefix of the hashes, id: no webhook, but of another program
function commands.refuse()
  local key = ARGV[2] .. ARGV[3]
  set_aside(due, key, 'not a webhook', redis.call('HGET', key, 'w') or '')
  redis.call('ZREM', due, ARGV[3])
  redis.call('DEL', key)
end

return commands[ARGV[1]]()
