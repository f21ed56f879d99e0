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

-- -> how many waiting requests no worker may take
local function count_paused()
  local sum = 0
  for class = 1, paused.all and 0 or CLASSES do
    for tenant in pairs(paused.tenants) do sum = sum + redis.call('ZCARD', lane_of(class, tenant)) end
  end
  return paused.all and number('n#1') + number('n#2') + number('n#3') or sum
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
