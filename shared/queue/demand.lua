-- Waiting and held requests of a model by class.

-- group, lanes -> for each class {waiting, held, age of the oldest waiting one in ms, requests/s recently pulled or ''}
function commands.demand()
  local found, now = {}, math.floor(seconds() * 1000)
  for class = 1, CLASSES do
    local oldest
    for _, tenant in ipairs(redis.call('ZRANGE', lanes[class], 0, -1)) do
      local first = redis.call('ZRANGE', lane_of(class, tenant), 0, 0)[1]
      local item = first and waiter(first)
      if item and (not oldest or item.born < oldest) then oldest = item.born end
    end
    local speed = rate(class)
    found[class] = {
      number('n#' .. class),
      redis.call('XLEN', streams[class]),
      oldest and math.max(0, now - oldest) or 0,
      speed and speed > 0 and string.format('%.6f', speed) or '',
    }
  end
  return found
end
