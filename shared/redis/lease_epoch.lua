-- Lease epochs, for scripts that name this file among theirs (shared/redis/script.py). Together with lease_deadline.lua
-- they are the lease primitive.
--
-- A lease lets one owner work on an item until a deadline by the server's clock. Each acquisition raises the item's lease
-- epoch, a field of a hash, so that a write under an older one is refused. Where a store that lost its last second may
-- give an epoch twice, the owner is kept beside it and compared too.
--
-- Two kinds of leases need no script: a lock is a string that expires (shared/locks/locks.lua), and what a worker
-- holds of a queue is leased by the stream's consumer group (shared/queue/leases.lua).

-- -> the lease epoch of a new owner; writes under former ones are refused from now on. In place of what another program
-- wrote, epochs go on from the time in ms, which is above all former ones.
local function next_epoch(hash, field)
  local epoch = redis.pcall('HINCRBY', hash, field, 1)
  if type(epoch) == 'number' then return epoch end
  set_aside(hash, hash .. ':' .. field, 'not a lease epoch')
  local time = redis.call('TIME')
  redis.call('HSET', hash, field, time[1] * 1000 + math.floor(time[2] / 1000))
  return redis.call('HINCRBY', hash, field, 1)
end

-- -> whether the caller's epoch is the current one
local function is_current(hash, field, epoch) return redis.call('HGET', hash, field) == epoch end

-- -> the same, with an owner, for scripts that read both together with other fields
local function is_held_by(owner, epoch, known_owner, known_epoch) return known_epoch == epoch and known_owner == owner end
