-- Batches. ARGV[1] names a command; KEYS: the open batches and one tenant's batches, by creation time in ms; and of one
-- batch its record, its items by the ms at which their leases end (0: free), and the details of each item.
-- Items of work: 'validate', then chunks by number, then 'finalize'. The lease epoch of an item is stored in the field
-- fence:<item>; a write under an older one is refused.

local open, of_tenant, record, items, details = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local MAX_REFUSED = 256 -- foreign items that one call sets aside
local commands = {}

local function status() return redis.call('HGET', record, 'status') end

local function enter(name)
  redis.call('HSET', record, 'status', name, name .. '_at', math.floor(now_ms() / 1000))
end

local function holds(item, epoch)
  return redis.call('ZSCORE', items, item) and is_current(details, 'fence:' .. item, epoch)
end

local function finish(id, name, ttl)
  enter(name)
  redis.call('ZREM', open, id)
  redis.call('DEL', items, details)
  redis.call('PEXPIRE', record, ttl)
end

local function whole(text) return text and string.match(text, '^%d+$') and #text <= 15 and tonumber(text) end

-- Replace the counts of an item, and change those of the batch by the difference. Another program may have written into
-- either.
local function count(item, completed, failed)
  for name, value in pairs({ completed = completed, failed = failed }) do
    local field = name .. ':' .. item
    local before, sum = whole(redis.call('HGET', details, field)), whole(redis.call('HGET', record, name))
    if before ~= tonumber(value) or not sum then
      redis.call('HSET', details, field, value)
      redis.call('HSET', record, name, string.format('%d', math.max(0, (sum or 0) + value - (before or 0))))
    end
  end
end

-- `finalize` is due once no other item is left.
local function settle_if_done()
  if redis.call('ZCARD', items) > 0 then return end
  if status() == 'in_progress' then enter('finalizing') end
  free_lease(items, 'finalize')
end

-- Remove an item that another program added.
local function refuse(item)
  set_aside(items, items .. ':' .. item, 'not an item of the batch', redis.call('HGET', details, 'chunk:' .. item) or '')
  remove_lease(items, item)
  redis.call('HDEL', details, 'chunk:' .. item)
  settle_if_done()
end

-- Free again each chunk without a record of its results, which another program deleted or overwrote.
local function reopen()
  for _, field in ipairs(redis.call('HKEYS', details)) do
    local item = string.match(field, '^chunk:(%d%d%d%d%d%d%d%d)$')
    if item and not whole(redis.call('HGET', details, 'done:' .. item)) then free_lease(items, item) end
  end
  if redis.call('ZCARD', items) > 1 then remove_lease(items, 'finalize') end
end

-- Make the items of an unfinished batch anew, if another program deleted them.
local function restore_items()
  if redis.call('EXISTS', items) == 1 then return end
  local now = status()
  if now == 'validating' then
    free_lease(items, 'validate')
  elseif now == 'in_progress' or now == 'finalizing' or now == 'cancelling' then
    free_lease(items, 'finalize')
  end
end

-- -> a free item of the batch; foreign ones are removed on the way
local function free_item(lease)
  restore_items()
  for _ = 1, MAX_REFUSED do
    local item = expired_leases(items, now_ms(), 1, lease)[1]
    if item == 'finalize' then
      reopen()
      item = expired_leases(items, now_ms(), 1, lease)[1]
    end
    if not item or item == 'validate' or item == 'finalize' or string.find(item, '^%d%d%d%d%d%d%d%d$') then return item end
    refuse(item)
  end
end

-- id, most open batches, description -> 1, or 0 if that many are open; repeating it changes nothing
function commands.create()
  if redis.call('EXISTS', record) == 1 then return 1 end
  if redis.call('ZCARD', open) >= tonumber(ARGV[3]) then return 0 end
  redis.call('HSET', record, 'batch', ARGV[4], 'status', 'validating', 'total', 0, 'completed', 0, 'failed', 0)
  redis.call('ZADD', open, now_ms(), ARGV[2])
  redis.call('ZADD', of_tenant, now_ms(), ARGV[2])
  free_lease(items, 'validate')
  return 1
end

-- -> the record as field, value …
function commands.get() return redis.call('HGETALL', record) end

-- id of the batch before, or '', most, prefix and suffix of records' keys -> records; nil if that batch is unknown.
-- The ids are known here only, so the records' keys, in the same slot, are made here; as those of `idle`.
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

-- prefix and suffix of items' keys, ms of a lease -> ids of the open batches that have a free item
function commands.idle()
  local found = {}
  for _, id in ipairs(redis.call('ZRANGE', open, 0, -1)) do
    local of = ARGV[2] .. id .. ARGV[3]
    if redis.call('EXISTS', of) == 0 or expired_leases(of, now_ms(), 1, ARGV[4])[1] then
      found[#found + 1] = id
    end
  end
  return found
end

-- -> ids of the open batches
function commands.open() return redis.call('ZRANGE', open, 0, -1) end

-- ms of the lease -> {item, lease epoch, its chunk or '', status}; nil if none is free
function commands.claim()
  local item = free_item(ARGV[2])
  if not item then return nil end
  hold_until(items, item, now_ms() + ARGV[2])
  local epoch = next_epoch(details, 'fence:' .. item)
  return { item, tostring(epoch), redis.call('HGET', details, 'chunk:' .. item) or '', status() }
end

-- item, lease epoch, completed, failed, ms of the lease -> status, or nil if the lease is lost
function commands.renew()
  if not holds(ARGV[2], ARGV[3]) then return nil end
  count(ARGV[2], ARGV[4], ARGV[5])
  hold_until(items, ARGV[2], now_ms() + ARGV[6])
  return status()
end

-- item, lease epoch: it is not an item of the batch
function commands.refuse()
  if holds(ARGV[2], ARGV[3]) then refuse(ARGV[2]) end
end

-- id: its record cannot be read
function commands.give_up()
  set_aside(record, record, 'not the record of a batch')
  redis.call('ZREM', open, ARGV[2])
end

-- item, lease epoch: give it back
function commands.release()
  if holds(ARGV[2], ARGV[3]) then free_lease(items, ARGV[2]) end
end

-- lease epoch, lines, chunks …: the file is valid -> 1, or 0 if the lease is lost
function commands.plan()
  if not holds('validate', ARGV[2]) then return 0 end
  remove_lease(items, 'validate')
  if status() ~= 'validating' then
    free_lease(items, 'finalize')
    return 1
  end
  redis.call('HSET', record, 'total', ARGV[3])
  enter('in_progress')
  for i = 4, #ARGV do
    local item = string.format('%08d', i - 4)
    redis.call('HSET', details, 'chunk:' .. item, ARGV[i])
    free_lease(items, item)
  end
  return 1
end

-- id, item, lease epoch, errors, ttl in ms: the file is not valid, or lost -> 1, or 0 if the lease is lost
function commands.fail()
  if not holds(ARGV[3], ARGV[4]) then return 0 end
  redis.call('HSET', record, 'errors', ARGV[5])
  finish(ARGV[2], 'failed', ARGV[6])
  return 1
end

-- item, lease epoch, completed, failed, 1 if time ran out: a chunk's results are durable -> 1, or 0 if the lease is lost
function commands.done()
  if not holds(ARGV[2], ARGV[3]) then return 0 end
  count(ARGV[2], ARGV[4], ARGV[5])
  redis.call('HSET', details, 'done:' .. ARGV[2], ARGV[3])
  if ARGV[6] == '1' then redis.call('HSET', record, 'late', 1) end
  remove_lease(items, ARGV[2])
  settle_if_done()
  return 1
end

-- -> for each chunk, in order, the lease epoch whose results count
function commands.results()
  local found, i = {}, 0
  while true do
    local epoch = redis.call('HGET', details, 'done:' .. string.format('%08d', i))
    if not epoch then return found end
    i = i + 1
    found[i] = epoch
  end
end

-- id, lease epoch, id of the output and of the error file or '', ttl in ms -> 1, or 0 if the lease is lost
function commands.finish()
  if not holds('finalize', ARGV[3]) then return 0 end
  if ARGV[4] ~= '' then redis.call('HSET', record, 'output_file_id', ARGV[4]) end
  if ARGV[5] ~= '' then redis.call('HSET', record, 'error_file_id', ARGV[5]) end
  local late = redis.call('HGET', record, 'late')
  local last = status() == 'cancelling' and 'cancelled' or late and 'expired' or 'completed'
  finish(ARGV[2], last, ARGV[6])
  return 1
end

-- -> 1, or 0 if the batch is ending already
function commands.cancel()
  local before = status()
  if before == 'validating' or before == 'in_progress' then enter('cancelling') end
  return (before == 'validating' or before == 'in_progress' or before == 'cancelling') and 1 or 0
end

return commands[ARGV[1]]()
