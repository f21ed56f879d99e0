-- Waiting and held requests of a model, all together and by class.

-- -> the lesser of two numbers, each of which may be nil
local function least(one, other) return one and other and math.min(one, other) or one or other end

-- -> the times of arrival in ms of the oldest waiting request of a class, and of the oldest that workers may take; each
-- nil without one
local function oldest_of(class)
  local oldest, open
  for _, tenant in ipairs(redis.call('ZRANGE', lanes[class], 0, -1)) do
    local born = oldest_in(class, tenant)
    oldest = least(oldest, born)
    if not (paused.all or paused.tenants[tenant]) then open = least(open, born) end
  end
  return oldest, open
end

-- -> the age in ms of what arrived at a time in ms, or 0 for nil
local function age_of(born) return born and math.max(0, math.floor(seconds() * 1000) - born) or 0 end

-- group, lanes
-- -> {waiting, their tokens, held, age of the oldest waiting one in ms, seconds until the last is taken or '', paused,
-- their tokens, age of the oldest in ms that is not paused}, and for each class, without paused requests, {waiting,
-- held, age of the oldest waiting one in ms, requests/s recently pulled or ''}
function commands.demand()
  read_gates()
  local classes, all_held, oldest, oldest_open, wait = {}, 0, nil, nil, 0
  for class = 1, CLASSES do
    local queued, held = number('n#' .. class), redis.call('XLEN', streams[class])
    local speed, born, open = rate(class) or 0, oldest_of(class)
    if queued > 0 then wait = math.max(wait, speed > 0 and queued / speed or math.huge) end
    oldest, oldest_open, all_held = least(oldest, born), least(oldest_open, open), all_held + held
    local available = math.max(0, queued - paused_in(class))
    classes[class] = { available, held, age_of(open), speed > 0 and string.format('%.6f', speed) or '' }
  end
  local promised = tonumber(redis.call('ZRANGE', reserved_at, 0, 0, 'WITHSCORES')[2])
  oldest, oldest_open = least(oldest, promised), least(oldest_open, not paused.all and promised or nil)
  local expected = wait < math.huge and string.format('%.3f', wait) or ''
  local stopped, stopped_tokens = charge_of_paused()
  return {
    { number('n'), number('t'), all_held, age_of(oldest), expected, stopped, stopped_tokens, age_of(oldest_open) },
    classes,
  }
end
