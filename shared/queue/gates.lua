-- Gates: a paused model, or a paused tenant of it, accepts requests, and workers take none of them. A draining one
-- refuses new requests, and its waiting ones are served. Held requests go on.
--
-- gates: hash '' for the model, or ':' and a tenant -> paused or draining; an open one is not in it

local paused = { all = false, tenants = {}, count = 0 } -- of a pull

local function read_gates()
  local all = redis.call('HGETALL', gates)
  for i = 1, #all, 2 do
    if all[i + 1] == 'paused' and all[i] == '' then
      paused.all = true
    elseif all[i + 1] == 'paused' then
      paused.tenants[string.sub(all[i], 2)] = true
      paused.count = paused.count + 1
    end
  end
end

-- -> the gates of a model and of a tenant in it, each false while it is open
local function gates_of(tenant) return unpack(redis.call('HMGET', gates, '', ':' .. tenant)) end

-- -> the refusal of a new request: 3 while the model drains, 4 while the tenant does
local function drain_refusal(tenant)
  local model_gate, tenant_gate = gates_of(tenant)
  if model_gate == 'draining' then return { 3, '' } end
  if tenant_gate == 'draining' then return { 4, '' } end
end

-- -> how many waiting requests no worker may take; without those of the class `except`, if it is given
local function count_paused(except)
  local sum = 0
  for class = 1, CLASSES do
    if class ~= except and paused.all then sum = sum + number('n#' .. class) end
    for tenant in pairs(class ~= except and not paused.all and paused.tenants or {}) do
      sum = sum + redis.call('ZCARD', lane_of(class, tenant))
    end
  end
  return sum
end

-- No lane of a class is open: its tenants are paused, or its lanes were deleted. The class gains nothing by a pause: it
-- goes on where the others are, else a tenant that arrives later would be served for what a paused one missed.
local function none_open(class)
  if paused.count == 0 then
    set('n#' .. class, 0)
  else
    set('v:' .. class, math.max(number('v:' .. class), number('clock')))
  end
end

-- -> tenant, virtual time, … of the lanes of a class that are not paused, from rank `first` to `last` among them
local function open_lanes(class, first, last)
  if paused.count == 0 then return redis.call('ZRANGE', lanes[class], first, last, 'WITHSCORES') end
  local all, found, rank = redis.call('ZRANGE', lanes[class], 0, last + paused.count, 'WITHSCORES'), {}, 0
  for i = 1, #all, 2 do
    if not paused.tenants[all[i]] then
      if rank >= first and rank <= last then
        found[#found + 1] = all[i]
        found[#found + 1] = all[i + 1]
      end
      rank = rank + 1
    end
  end
  return found
end
