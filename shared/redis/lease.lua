-- The lease primitive, for scripts that name it among their files (shared/redis/script.py).
--
-- A lease lets one owner work on something until a deadline by the server's clock. Each acquisition raises the lease
-- epoch, so that a write under an older one can be refused. Each script chooses where it keeps them:
--   deadline  the item's score in a sorted set, in ms since the epoch; at 0 the item is free
--   epoch     a field of a hash
--   owner     a field beside the epoch, where a store that lost its last second may give an epoch twice; or the value
--             of a string that expires with the lease
-- What a worker holds of a queue is leased by the stream's consumer group instead: see shared/queue/leases.lua.

local lease = {}

-- -> ms since the epoch
function lease.now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- -> at most `most` items that are free, or whose lease has expired at `now`; the longest first
function lease.expired(deadlines, now, most)
  return redis.call('ZRANGEBYSCORE', deadlines, '-inf', now, 'LIMIT', 0, most)
end

-- Acquire or renew: nothing else gets the item before `deadline`.
function lease.hold(deadlines, item, deadline) redis.call('ZADD', deadlines, deadline, item) end

function lease.free(deadlines, item) redis.call('ZADD', deadlines, 0, item) end

function lease.remove(deadlines, item) redis.call('ZREM', deadlines, item) end

-- -> the lease epoch of a new owner; those of all former ones are refused from now on
function lease.next_epoch(hash, field) return redis.call('HINCRBY', hash, field, 1) end

-- -> whether this epoch is the last that was given
function lease.is_current(hash, field, epoch) return redis.call('HGET', hash, field) == epoch end

-- -> whether the epoch and owner that were read are those of the caller, for scripts that read them with other fields
function lease.matches(known_epoch, known_owner, epoch, owner) return known_epoch == epoch and known_owner == owner end

-- Take the name `key` for `ttl` ms, or renew it, unless another owner has it. -> the owner that it has now
function lease.lock(key, owner, ttl)
  local found = redis.call('GET', key)
  if found and found ~= owner then return found end
  redis.call('SET', key, owner, 'PX', ttl)
  return owner
end

function lease.unlock(key, owner)
  if redis.call('GET', key) == owner then redis.call('DEL', key) end
end
