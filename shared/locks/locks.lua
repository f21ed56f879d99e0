-- Named locks: KEYS[1] is a string that holds the owner of one. ARGV[1] names a command.

local commands = {}

-- owner, ttl in ms -> the owner that it has now
function commands.hold() return lease.lock(KEYS[1], ARGV[2], ARGV[3]) end

-- owner
function commands.release() lease.unlock(KEYS[1], ARGV[2]) end

return commands[ARGV[1]]()
