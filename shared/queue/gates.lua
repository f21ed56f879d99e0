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

-- -> how many waiting requests of a class no worker may take
local function paused_in(class)
  if paused.all then return number('n#' .. class) end
  local sum = 0
  for tenant in pairs(paused.tenants) do sum = sum + redis.call('ZCARD', lane_of(class, tenant)) end
  return sum
end

-- -> the same of all classes but one
local function count_paused(except)
  local sum = 0
  for class = 1, CLASSES do sum = sum + (class ~= except and paused_in(class) or 0) end
  return sum
end

-- -> requests that are paused, and their tokens, with those on their way
local function charge_of_paused()
  if paused.all then return number('n'), number('t') end
  local requests, tokens = 0, 0
  for tenant in pairs(paused.tenants) do
    read_tenant(tenant)
    requests, tokens = requests + number('n:' .. tenant), tokens + number('t:' .. tenant)
  end
  return requests, tokens
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
