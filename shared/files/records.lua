-- Records of files. ARGV[1] names a command; KEYS: records and sizes by id, ids by expiry in ms, and a tenant's ids by
-- creation time in ms. The sizes hash has the total under ''.

local records, sizes, ends, of_tenant = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local commands = {}

local function used_bytes() return tonumber(redis.call('HGET', sizes, '') or 0) or 0 end

-- id, creation time and expiry in ms, bytes, maximum bytes of all files, record -> 1, or 0 if there is no room; repeating
-- it changes nothing
function commands.add()
  if redis.call('HEXISTS', records, ARGV[2]) == 1 then return 1 end
  local used = used_bytes()
  if used + ARGV[5] > tonumber(ARGV[6]) then return 0 end
  redis.call('HSET', records, ARGV[2], ARGV[7])
  redis.call('HSET', sizes, ARGV[2], ARGV[5])
  redis.call('HSET', sizes, '', used + ARGV[5])
  redis.call('ZADD', ends, ARGV[4], ARGV[2])
  redis.call('ZADD', of_tenant, ARGV[3], ARGV[2])
  return 1
end

-- -> bytes of all files
function commands.used() return used_bytes() end

-- id -> record or nil
function commands.get() return redis.call('HGET', records, ARGV[2]) end

-- id -> 1, or 0 if it is unknown
function commands.remove()
  local size = redis.call('HGET', sizes, ARGV[2])
  if not size then return 0 end
  redis.call('HDEL', records, ARGV[2])
  redis.call('HDEL', sizes, ARGV[2])
  redis.call('HSET', sizes, '', math.max(0, used_bytes() - (tonumber(size) or 0)))
  redis.call('ZREM', ends, ARGV[2])
  redis.call('ZREM', of_tenant, ARGV[2])
  return 1
end

-- id of the file before, or '', most, 1 for the oldest first -> id, record …; nil if the file before is unknown
function commands.list()
  local oldest = ARGV[4] == '1'
  local first = 0
  if ARGV[2] ~= '' then
    local rank = redis.call(oldest and 'ZRANK' or 'ZREVRANK', of_tenant, ARGV[2])
    if not rank then return nil end
    first = rank + 1
  end
  local found = {}
  for _, id in ipairs(redis.call(oldest and 'ZRANGE' or 'ZREVRANGE', of_tenant, first, first + ARGV[3] - 1)) do
    found[#found + 1] = id
    found[#found + 1] = redis.call('HGET', records, id) or ''
  end
  return found
end

-- time in ms, most -> id, record … of expired files
function commands.ended()
  local found = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', ARGV[2], 'LIMIT', 0, ARGV[3])) do
    found[#found + 1] = id
    found[#found + 1] = redis.call('HGET', records, id) or ''
  end
  return found
end

-- id …: set aside what another program wrote
function commands.refuse()
  for i = 2, #ARGV do
    set_aside(records, records .. ':' .. ARGV[i], 'not the record of a file', redis.call('HGET', records, ARGV[i]) or '')
    for _, hash in ipairs({ records, sizes }) do redis.call('HDEL', hash, ARGV[i]) end
    for _, ids in ipairs({ ends, of_tenant }) do redis.call('ZREM', ids, ARGV[i]) end
  end
end

return commands[ARGV[1]]()
