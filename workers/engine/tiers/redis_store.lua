-- Blocks of one KV tier. KEYS: the index of a slot, a sorted set of names by the time of their last use, and a value.
-- ARGV: the command, the value's name (the end of its key), the time that an unused value is kept in ms; for `reserve`
-- the most values of the slot.

local command, name, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
local MOST_REMOVED = 64 -- by one call

local function use()
  local clock = redis.call('TIME')
  local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2]) -- in us, which a score holds exactly
  redis.call('ZADD', KEYS[1], now, name)
  redis.call('PEXPIRE', KEYS[1], ttl)
  return now
end

if command == 'keep' then
  if redis.call('PEXPIRE', KEYS[2], ttl) == 0 then return 0 end
  use()
  return 1
end

-- make room for a value that is written next
if command == 'reserve' then
  local now = use()
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ttl * 1000)
  local over = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[4])
  if over > 0 then
    local prefix = string.sub(KEYS[2], 1, -#name - 1)
    for _, oldest in ipairs(redis.call('ZRANGE', KEYS[1], 0, math.min(over, MOST_REMOVED) - 1)) do
      redis.call('DEL', prefix .. oldest)
      redis.call('ZREM', KEYS[1], oldest)
    end
  end
  return 1
end

if command == 'drop' then
  redis.call('ZREM', KEYS[1], name)
  return redis.call('DEL', KEYS[2])
end
