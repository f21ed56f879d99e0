-- Waiting and held requests of a model, all together and by class.

-- -> the time of arrival in ms of the oldest waiting request of a class, or nil
local function oldest_of(class)
  local oldest
  for _, tenant in ipairs(redis.call('ZRANGE', lanes[class], 0, -1)) do
    local born = oldest_in(class, tenant)
    if born and not (oldest and oldest < born) then oldest = born end
  end
  return oldest
end

-- -> the age in ms of what arrived at a time in ms, or 0 for nil
local function age_of(born) return born and math.max(0, math.floor(seconds() * 1000) - born) or 0 end

-- group, lanes
-- -> {waiting, their tokens, held, age of the oldest waiting one in ms, seconds until the last is taken or ''}, and for
-- each class {waiting, held, age of the oldest waiting one in ms, requests/s recently pulled or ''}
function commands.demand()
  local classes, all_held, oldest, wait = {}, 0, nil, 0
  for class = 1, CLASSES do
    local queued, held = number('n#' .. class), redis.call('XLEN', streams[class])
    local born, speed = oldest_of(class), rate(class) or 0
    if queued > 0 then wait = math.max(wait, speed > 0 and queued / speed or math.huge) end
    if born and not (oldest and oldest < born) then oldest = born end
    all_held = all_held + held
    classes[class] = { queued, held, age_of(born), speed > 0 and string.format('%.6f', speed) or '' }
  end
  local promised = redis.call('ZRANGE', reserved_at, 0, 0, 'WITHSCORES')[2]
  if promised then oldest = math.min(oldest or math.huge, tonumber(promised)) end
  local expected = wait < math.huge and string.format('%.3f', wait) or ''
  return { { number('n'), number('t'), all_held, age_of(oldest), expected }, classes }
end
