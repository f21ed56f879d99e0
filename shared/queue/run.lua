-- Runs the command, once all commands are defined.

local reply = commands[ARGV[1]]()
write_back()
return reply
