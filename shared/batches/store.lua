-- Batches. ARGV[1] names a command; KEYS: the open batches by the ms of their making, a tenant's batches by the same,
-- and of one batch: its record, its items by the ms until which they are held (0: free), and what is known of each.
-- Items of work: 'validate', then chunks by number, then 'finalize'. Each holder of one has a fence, a number that
-- the next holder's exceeds: what comes with an older one is refused.

local open, of_tenant, record, items, known = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local commands = {}

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function status() return redis.call('HGET', record, 'status') end

local function enter(name)
  redis.call('HSET', record, 'status', name, name .. '_at', math.floor(now() / 1000))
end

local function holds(item, fence)
  return redis.call('ZSCORE', items, item) and redis.call('HGET', known, 'fence:' .. item) == fence
end

local function free(item) redis.call('ZADD', items, 0, item) end

local function finish(id, name, ttl)
  enter(name)
  redis.call('ZREM', open, id)
  redis.call('DEL', items, known)
  redis.call('PEXPIRE', record, ttl)
end

-- The counts of an item, in place of those that it had before.
local function count(item, completed, failed)
  for name, value in pairs({ completed = completed, failed = failed }) do
    local field = name .. ':' .. item
    local before = redis.call('HGET', known, field) or 0
    if tonumber(before) ~= tonumber(value) then
      redis.call('HSET', known, field, value)
      redis.call('HINCRBY', record, name, value - before)
    end
  end
end

-- id, most open batches, description -> 1, 0 where there are as many open; the same id again changes nothing
function commands.create()
  if redis.call('EXISTS', record) == 1 then return 1 end
  if redis.call('ZCARD', open) >= tonumber(ARGV[3]) then return 0 end
  redis.call('HSET', record, 'batch', ARGV[4], 'status', 'validating', 'total', 0, 'completed', 0, 'failed', 0)
  redis.call('ZADD', open, now(), ARGV[2])
  redis.call('ZADD', of_tenant, now(), ARGV[2])
  free('validate')
  return 1
end

-- -> the record as field, value …
function commands.get() return redis.call('HGETALL', record) end

-- id of the batch before, or '', most, prefix and suffix of records' keys -> records; nil when there is none before
function commands.list()
  local first = 0
  if ARGV[2] ~= '' then
    local rank = redis.call('ZREVRANK', of_tenant, ARGV[2])
    if not rank then return nil end
    first = rank + 1
  end
  local found = {}
  for _, id in ipairs(redis.call('ZREVRANGE', of_tenant, first, first + ARGV[3] - 1)) do
    local fields = redis.call('HGETALL', ARGV[4] .. id .. ARGV[5])
    if #fields > 0 then found[#found + 1] = fields else redis.call('ZREM', of_tenant, id) end
  end
  return found
end

-- prefix and suffix of items' keys -> ids of the open batches that have an item which nobody holds
function commands.idle()
  local found = {}
  for _, id in ipairs(redis.call('ZRANGE', open, 0, -1)) do
    if redis.call('ZRANGEBYSCORE', ARGV[2] .. id .. ARGV[3], '-inf', now(), 'LIMIT', 0, 1)[1] then
      found[#found + 1] = id
    end
  end
  return found
end

-- -> ids of the open batches
function commands.open() return redis.call('ZRANGE', open, 0, -1) end

-- ms of the lease -> {item, fence, what is known of it or '', status}, or nil where none is free
function commands.claim()
  local item = redis.call('ZRANGEBYSCORE', items, '-inf', now(), 'LIMIT', 0, 1)[1]
  if not item then return nil end
  redis.call('ZADD', items, now() + ARGV[2], item)
  local fence = redis.call('HINCRBY', known, 'fence:' .. item, 1)
  return { item, tostring(fence), redis.call('HGET', known, 'chunk:' .. item) or '', status() }
end

-- item, fence, completed, failed, ms of the lease -> status, or nil: somebody else holds it now
function commands.renew()
  if not holds(ARGV[2], ARGV[3]) then return nil end
  count(ARGV[2], ARGV[4], ARGV[5])
  redis.call('ZADD', items, now() + ARGV[6], ARGV[2])
  return status()
end

-- item, fence: given back
function commands.release()
  if holds(ARGV[2], ARGV[3]) then free(ARGV[2]) end
end

-- fence, lines, chunks …: the file is valid -> 1, 0 refused
function commands.plan()
  if not holds('validate', ARGV[2]) then return 0 end
  redis.call('ZREM', items, 'validate')
  if status() ~= 'validating' then
    free('finalize')
    return 1
  end
  redis.call('HSET', record, 'total', ARGV[3])
  enter('in_progress')
  for i = 4, #ARGV do
    local item = string.format('%08d', i - 4)
    redis.call('HSET', known, 'chunk:' .. item, ARGV[i])
    free(item)
  end
  return 1
end

-- id, fence, errors, ttl in ms: the file is not valid -> 1, 0 refused
function commands.fail()
  if not holds('validate', ARGV[3]) then return 0 end
  redis.call('HSET', record, 'errors', ARGV[4])
  finish(ARGV[2], 'failed', ARGV[5])
  return 1
end

-- item, fence, completed, failed, 1 if time ran out: a chunk's results are durable -> 1, 0 refused
function commands.done()
  if not holds(ARGV[2], ARGV[3]) then return 0 end
  count(ARGV[2], ARGV[4], ARGV[5])
  redis.call('HSET', known, 'done:' .. ARGV[2], ARGV[3])
  if ARGV[6] == '1' then redis.call('HSET', record, 'late', 1) end
  redis.call('ZREM', items, ARGV[2])
  if redis.call('ZCARD', items) == 0 then
    if status() == 'in_progress' then enter('finalizing') end
    free('finalize')
  end
  return 1
end

-- -> for each chunk in order the fence whose results count
function commands.results()
  local found, i = {}, 0
  while true do
    local fence = redis.call('HGET', known, 'done:' .. string.format('%08d', i))
    if not fence then return found end
    i = i + 1
    found[i] = fence
  end
end

-- id, fence, id of the output and of the error file or '', ttl in ms -> 1, 0 refused
function commands.finish()
  if not holds('finalize', ARGV[3]) then return 0 end
  if ARGV[4] ~= '' then redis.call('HSET', record, 'output_file_id', ARGV[4]) end
  if ARGV[5] ~= '' then redis.call('HSET', record, 'error_file_id', ARGV[5]) end
  local late = redis.call('HGET', record, 'late')
  local last = status() == 'cancelling' and 'cancelled' or late and 'expired' or 'completed'
  finish(ARGV[2], last, ARGV[6])
  return 1
end

-- -> 1, or 0 where the batch goes to its end already
function commands.cancel()
  local before = status()
  if before == 'validating' or before == 'in_progress' then enter('cancelling') end
  return (before == 'validating' or before == 'in_progress' or before == 'cancelling') and 1 or 0
end

return commands[ARGV[1]]()
