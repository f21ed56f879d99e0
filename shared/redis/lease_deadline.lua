-- Lease deadlines (see lease_epoch.lua): an item's score in a sorted set is the time in ms since the epoch, by the server's
-- clock, at which its lease ends. At 0 the item is free.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- -> at most `most` items that are free, or whose lease has ended; the oldest deadline first. A deadline more than
-- `longest` ms ahead was written by another program, or before the clock was set back: it is brought forward.
local function expired_leases(deadlines, now, most, longest)
  local last = string.format('%d', now + longest)
  for _, item in ipairs(redis.call('ZRANGEBYSCORE', deadlines, '(' .. last, '+inf', 'LIMIT', 0, most)) do
    redis.call('ZADD', deadlines, last, item)
    set_aside(deadlines, deadlines .. ':' .. item, 'a deadline beyond any lease')
  end
  return redis.call('ZRANGEBYSCORE', deadlines, '-inf', now, 'LIMIT', 0, most)
end

-- Acquire or renew: no other owner gets the item before `deadline`.
local function hold_until(deadlines, item, deadline) redis.call('ZADD', deadlines, deadline, item) end

local function free_lease(deadlines, item) redis.call('ZADD', deadlines, 0, item) end

local function remove_lease(deadlines, item) redis.call('ZREM', deadlines, item) end
