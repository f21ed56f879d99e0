-- The audit log of administrative actions: a bounded stream. ARGV[1] names a command.

local log, commands = KEYS[1], {}

-- action, how many to keep
function commands.add() redis.call('XADD', log, 'MAXLEN', '~', ARGV[3], '*', 'a', ARGV[2]) end

-- end of the range as XREVRANGE takes it, most -> id, action …, newest first; '' for an entry of another program
function commands.list()
  local found = {}
  for _, entry in ipairs(redis.call('XREVRANGE', log, ARGV[2], '-', 'COUNT', ARGV[3])) do
    found[#found + 1] = entry[1]
    found[#found + 1] = entry[2][1] == 'a' and entry[2][2] or ''
  end
  return found
end

return commands[ARGV[1]]()
