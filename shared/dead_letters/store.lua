-- Dead letters. ARGV[1] names a command; KEYS: ids by time in ms, letters by id.

local index, letters = KEYS[1], KEYS[2]
local commands = {}

local function drop(ids)
  local count = 0
  for _, id in ipairs(ids) do
    count = count + redis.call('ZREM', index, id)
    redis.call('HDEL', letters, id)
  end
  return count
end

-- id, time in ms, letter, most letters, ttl in ms
function commands.add()
  redis.call('ZADD', index, ARGV[3], ARGV[2])
  redis.call('HSET', letters, ARGV[2], ARGV[4])
  drop(redis.call('ZRANGEBYSCORE', index, '-inf', ARGV[3] - ARGV[6]))
  local surplus = redis.call('ZCARD', index) - ARGV[5]
  if surplus > 0 then drop(redis.call('ZRANGE', index, 0, surplus - 1)) end
  redis.call('PEXPIRE', index, ARGV[6])
  redis.call('PEXPIRE', letters, ARGV[6])
end

-- id of the letter before, or '', most letters -> id, letter …, newest first
function commands.list()
  local rank = -1
  if ARGV[2] ~= '' then rank = redis.call('ZREVRANK', index, ARGV[2]) end
  if not rank then return {} end
  local found = {}
  for _, id in ipairs(redis.call('ZREVRANGE', index, rank + 1, rank + ARGV[3])) do
    found[#found + 1] = id
    found[#found + 1] = redis.call('HGET', letters, id) or ''
  end
  return found
end

-- id -> letter or nil
function commands.get() return redis.call('HGET', letters, ARGV[2]) end

-- id …: set aside what another program wrote
function commands.refuse()
  for i = 2, #ARGV do
    set_aside(index, letters .. ':' .. ARGV[i], 'not a dead letter', redis.call('HGET', letters, ARGV[i]) or '')
    drop({ ARGV[i] })
  end
end

-- id … -> how many existed
function commands.remove() return drop({ unpack(ARGV, 2) }) end

-- -> how many there were
function commands.purge()
  local count = redis.call('ZCARD', index)
  redis.call('DEL', index, letters)
  return count
end

return commands[ARGV[1]]()
