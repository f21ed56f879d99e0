-- Routes of requests that were published under a policy other than `pull`. A waiting request is aimed at one worker;
-- its id is also in a sorted set of its lane and that worker, in its order. A held request belongs to its holder.
--
-- routes:    hash id -> cost:time in ms:worker
-- in_flight: hash worker -> tokens of the requests aimed at it or held by it
-- seen:      hash worker -> time in ms of its last call, and since when it has had room and passed over requests of
--            others (0: it has not). Only workers under such a policy are in it. Any worker may take a request whose
--            worker is missing here, or was silent for a lease.

local MAX_LANES = 64 -- lanes of a class that one pull looks into
local AIMED_TTL_MS = 86400000 -- of ids that an earlier version, which does not know aims, has left behind

local function milliseconds() return math.floor(seconds() * 1000) end

local function aimed_at(class, worker, tenant)
  return ARGV[3] .. 'aimed:' .. class .. ':' .. worker .. ':' .. tenant
end

-- -> cost, time in ms and worker of a request's route, or nil
local function route(id)
  local value = redis.call('HGET', routes, id)
  local cost, at, worker = string.match(value or '', '^(%d+):(%d+):(.+)$')
  if cost then return finite(cost), finite(at), worker end
end

local function add_load(worker, tokens)
  local sum = finite(redis.call('HGET', in_flight, worker)) + tokens
  if sum > 0 then
    redis.call('HSET', in_flight, worker, string.format('%d', sum))
  else
    redis.call('HDEL', in_flight, worker)
  end
end

local function count_aimed(worker, sign)
  add('routed', sign)
  add('routed:' .. worker, sign)
end

-- Aim a request that enters its lane with the ordinal `order` at a worker.
local function aim(class, tenant, id, cost, worker, order)
  redis.call('HSET', routes, id, table.concat({ cost, milliseconds(), worker }, ':'))
  local key = aimed_at(class, worker, tenant)
  redis.call('ZADD', key, order, id)
  redis.call('PEXPIRE', key, AIMED_TTL_MS)
  add_load(worker, cost)
  count_aimed(worker, 1)
end

-- Remove a request that leaves its lane from those aimed at its worker. It keeps its route.
local function unaim(class, tenant, id)
  if number('routed') == 0 then return end
  local _, _, worker = route(id)
  if not worker then return end
  redis.call('ZREM', aimed_at(class, worker, tenant), id)
  count_aimed(worker, -1)
end

-- Give the route of a request that was taken to its holder. -> whether it had one to another worker
local function move_route(id, holder)
  local cost, at, worker = route(id)
  if not cost or worker == holder then return false end
  add_load(worker, -cost)
  add_load(holder, cost)
  redis.call('HSET', routes, id, table.concat({ cost, at, holder }, ':'))
  return true
end

local function end_route(id)
  local cost, _, worker = route(id)
  if cost then add_load(worker, -cost) end
  redis.call('HDEL', routes, id)
end

local function any_routes() return redis.call('EXISTS', routes) == 1 end

-- -> when a worker was last seen in ms, and since when it has passed over requests
local function sighting(value)
  local at, passing = string.match(value or '', '^(%d+):(%d+)$')
  return tonumber(at), tonumber(passing)
end

-- Note that a worker takes requests, and since when it has passed over those of others.
local function see(worker, passing)
  redis.call('HSET', seen, worker, string.format('%d:%d', milliseconds(), passing))
end

-- Note the heartbeat of a worker that takes requests: one that has left is not noted.
local function see_again(worker)
  local _, passing = sighting(redis.call('HGET', seen, worker))
  if passing then see(worker, passing) end
end

local function forget_worker(worker)
  redis.call('HDEL', pullers, worker)
  redis.call('HDEL', seen, worker)
end

-- -> the workers seen within the lease, as a set
local function present(lease)
  local all, found, now = redis.call('HGETALL', seen), {}, milliseconds()
  for i = 1, #all, 2 do
    local at = sighting(all[i + 1])
    if at and now - at < lease then found[all[i]] = true end
  end
  return found
end

-- -> which requests a pulling worker may take: its own, those of no worker or of an absent one, and if it has had room
-- and passed over requests for `patience`, those that have waited for that long.
-- `lanes`: how many lanes of a class, in their order, have none. `lists`: those lanes that come next, as far as they
-- are known. `seats`: free for the worker's most urgent class.
-- `shares`: requests of no worker, or of an absent one, are left to less loaded workers for now.
local function search_of(worker, seats, lease, patience)
  local _, passing = sighting(redis.call('HGET', seen, worker))
  local search = { worker = worker, seats = seats, passing = passing or 0, returned = 0, passed = false }
  search.lanes, search.lists, search.absent, search.others = {}, {}, {}, {}
  local here, now = present(lease), milliseconds()
  if search.passing > 0 and now - search.passing >= patience then search.until_ms = now - patience end
  local all = redis.call('HGETALL', in_flight)
  for i = 1, #all, 2 do
    local other = all[i]
    if other ~= worker and here[other] then
      search.others[#search.others + 1], search.others[other] = other, true
    elseif other ~= worker and number('routed:' .. other) > 0 then
      search.absent[#search.absent + 1] = other
    end
  end
  for class = 1, CLASSES do search.lanes[class] = 0 end
  return search
end

-- -> whether the worker of a search may take a request with this route
local function is_open(search, cost, at, worker)
  if worker == search.worker then return true end
  if cost and search.others[worker] then return search.until_ms ~= nil and at <= search.until_ms end
  return not search.shares
end

-- -> whether more requests than those of its own may be open to the worker of a search
local function is_wide(search)
  if search.until_ms then return true end
  local waits = number('n#1') + number('n#2') + number('n#3')
  return not search.shares and (search.absent[1] ~= nil or waits > number('routed'))
end

-- -> the next lane of a class that may have an open request, and its virtual time; nil after MAX_LANES
local function next_lane(class, search)
  local rank, list = search.lanes[class], search.lists[class]
  if not list or rank > list.last then -- most often, the first has one
    list = { first = rank, last = rank == 0 and 0 or MAX_LANES - 1 }
    list.found = open_lanes(class, list.first, list.last)
    search.lists[class] = list
  end
  local i = 2 * (rank - list.first) + 1
  if rank < MAX_LANES then return list.found[i], finite(list.found[i + 1]) end
end

-- -> the workers whose requests may be open to the worker of a search
local function searched(search)
  local workers = { search.worker }
  for _, worker in ipairs(search.shares and {} or search.absent) do workers[#workers + 1] = worker end
  for _, worker in ipairs(search.until_ms and search.others or {}) do workers[#workers + 1] = worker end
  return workers
end

local function note_taken(search, class, id, seats)
  search.seats, search.lists[class] = search.seats - seats, nil
  if move_route(id, search.worker) then search.returned = search.returned + 1 end
end

-- Note the worker of a pull, and whether it has room left and passed over requests. -> whether it has
local function end_search(worker, search)
  local passes = search ~= nil and search.passed and search.seats > 0
  see(worker, passes and (search.passing > 0 and search.passing or milliseconds()) or 0)
  return passes
end

-- group, lanes, lease in ms -> worker, tokens in flight … of the workers that take requests
function commands.in_flight()
  local out = {}
  for worker in pairs(present(tonumber(ARGV[4]))) do
    out[#out + 1] = worker
    out[#out + 1] = finite(redis.call('HGET', in_flight, worker))
  end
  return out
end

-- group, lanes, worker, wake channel: the worker takes no more requests
function commands.leave()
  forget_worker(ARGV[4])
  redis.call('PUBLISH', ARGV[5], 'published')
end
