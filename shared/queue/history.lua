-- What happened in the queue while a request waited: how far its class got, and for how long it was paused.
--
-- Times are in ticks.
--
-- counters: taken:<class>  requests of a class that were taken
--           stepped        when these numbers were noted last
--           steps          the notes, `time:taken of each class:…`; the older they are, the further apart
--           pauses         JSON of pauses, [from, to or 0, gate]
--           resumed        when a pause ended last

local MAX_STEPS, MAX_PAUSES = 64, 128 -- that are kept, as in memory_history.py
local MAX_SHOWN = 12 -- positions and pauses of one request
local noted_steps

local function ticks() return math.floor(seconds() * TICKS_PER_S) end

-- -> a time as JSON, in seconds
local function as_seconds(time) return string.format('%.5f', time / TICKS_PER_S) end

local function steps()
  if not noted_steps then
    noted_steps = {}
    for at, a, b, c in string.gmatch(redis.call('HGET', counters, 'steps') or '', '(%d+):(%d+):(%d+):(%d+)') do
      noted_steps[#noted_steps + 1] = { finite(at), finite(a), finite(b), finite(c) }
    end
  end
  return noted_steps
end

-- Note how many requests of each class were taken so far, at most once in `interval`.
local function note_step(interval)
  local now = ticks()
  local since = now - number('stepped')
  if since >= 0 and since < interval then return end
  local kept, lines = steps(), {}
  if #kept >= MAX_STEPS then
    local thinned = {}
    for i = 2, #kept, 2 do thinned[#thinned + 1] = kept[i] end
    kept = thinned
  end
  kept[#kept + 1] = { now, number('taken:1'), number('taken:2'), number('taken:3') }
  for i, step in ipairs(kept) do lines[i] = string.format('%d:%d:%d:%d', unpack(step)) end
  noted_steps = kept
  redis.call('HSET', counters, 'steps', table.concat(lines, ' '))
  set('stepped', now)
end

-- -> the last MAX_SHOWN of a list, or as many that are spread over it, as JSON
local function shown(all, spread)
  local kept, stride = {}, spread and math.ceil(#all / MAX_SHOWN) or 1
  for i = 1, #all do
    if (#all - i) % stride == 0 and (#all - i) / stride < MAX_SHOWN then kept[#kept + 1] = all[i] end
  end
  return '[' .. table.concat(kept, ',') .. ']'
end

-- -> the places in its class that a waiting request had since `entered`, if it has the place `place` now: as many more as
-- requests of its class were taken since
local function positions_since(class, entered, place)
  local found, taken = {}, number('taken:' .. class)
  for _, step in ipairs(steps()) do
    if step[1] > entered then
      found[#found + 1] = string.format('[%s,%d]', as_seconds(step[1]), math.max(1, place + taken - step[class + 1]))
    end
  end
  return shown(found, true)
end

local function pauses()
  local ok, all = pcall(cjson.decode, redis.call('HGET', counters, 'pauses') or '[]')
  local found = {}
  for _, each in ipairs(ok and type(all) == 'table' and all or {}) do
    if type(each) == 'table' and type(each[1]) == 'number' and type(each[2]) == 'number' and type(each[3]) == 'string' then
      found[#found + 1] = each
    end
  end
  return found
end

-- Note that a gate changes.
local function note_gate(gate, before, state)
  if (before == 'paused') == (state == 'paused') then return end
  local all, now, lines = pauses(), ticks(), {}
  if state == 'paused' then
    all[#all + 1] = { now, 0, gate }
  else
    for _, each in ipairs(all) do
      if each[2] == 0 and each[3] == gate then each[2] = now end
    end
    set('resumed', now)
  end
  while #all > MAX_PAUSES do table.remove(all, 1) end
  for i, each in ipairs(all) do
    lines[i] = string.format('[%.0f,%.0f,%s]', finite(each[1]), finite(each[2]), cjson.encode(each[3]))
  end
  redis.call('HSET', counters, 'pauses', '[' .. table.concat(lines, ',') .. ']')
end

-- -> the times since `entered` for which a tenant's requests were paused; null as the end of a pause that lasts
local function pauses_since(tenant, entered)
  local found = {}
  for _, each in ipairs(pauses()) do
    local from, to, gate = math.max(finite(each[1]), entered), finite(each[2]), each[3]
    if gate == '' or gate == ':' .. tenant then
      if to > from then
        found[#found + 1] = string.format('[%s,%s]', as_seconds(from), as_seconds(to))
      elseif to == 0 and redis.call('HGET', gates, gate) == 'paused' then
        found[#found + 1] = string.format('[%s,null]', as_seconds(from))
      end
    end
  end
  return shown(found)
end

-- -> the stay in a payload as JSON, and when it began; nil if an earlier version wrote it
local function stay_in(payload)
  local stay, entered = string.match(payload, '^{"stay":(%b[])'), nil
  if stay then entered = tonumber(string.match(stay, '^%[([%d.]+),')) end
  if entered then return stay, math.floor(entered * TICKS_PER_S + 0.5) end
end

-- -> the payload of a request that is taken, with what happened while it waited. Of one that waited for less than
-- `interval`, the positions are left out.
local function with_history(class, tenant, item, interval)
  local born = item.born * TICKS_PER_S / 1000
  local moved, paused_since = number('stepped') >= born and ticks() - born >= interval, number('resumed') >= born
  if not moved and not paused_since then return item.payload end
  local stay, entered = stay_in(item.payload)
  if not stay then return item.payload end
  local positions = moved and positions_since(class, entered, 1) or '[]'
  local paused_times = paused_since and pauses_since(tenant, entered) or '[]'
  return table.concat({ '{"stay":', string.sub(stay, 1, -2), ',', positions, ',', paused_times, ']',
    string.sub(item.payload, #stay + 9) })
end

-- -> the same of one that waits, at the place `place` in its class: the stay alone, as JSON
local function stay_so_far(class, tenant, item, place)
  local stay, entered = stay_in(item.payload)
  return stay and table.concat({ string.sub(stay, 1, -2), ',', positions_since(class, entered, place), ',',
    pauses_since(tenant, entered), ']' }) or ''
end
